"""The store of a sweep: it resumes, notices damage, and tells of what cannot be written."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from sweeping import AXES, points, product, python, untouched

import gflow
from gflow import _key
from gflow.sweeps import work


@pytest.mark.parametrize("jobs", [1, 2])
def test_finished_points_are_not_computed_again(counted, store, jobs):
    first = gflow.sweep(counted, AXES, store, jobs)
    again = gflow.sweep(counted, AXES, store, jobs)
    assert again.identical(first) and len(counted.calls) == 12
    more = gflow.sweep(counted, {"b": range(5), "a": [2.0, 3.0]}, store, jobs)
    assert len(counted.calls) == 12 + 6 and (more.value == more.a * 10 + more.b).all()


def test_integers_and_floats_are_different_points(counted, store):
    gflow.sweep(counted, {"a": [1], "b": [1]}, store, 1)
    gflow.sweep(counted, {"a": [1.0], "b": [1]}, store, 1)
    assert counted.calls == ["1 1", "1.0 1"]


def test_a_store_that_workers_do_not_share_is_written_to_by_the_calling_process(
    tmp_path, counted, monkeypatch
):
    send = work.Work.__reduce__

    def send_elsewhere(work):
        make, (packed, (folder, key), *rest) = send(work)
        return make, (packed, (folder.replace("here", "there"), key), *rest)

    monkeypatch.setattr(work.Work, "__reduce__", send_elsewhere)
    gflow.sweep(counted, AXES, tmp_path / "here", 2)
    assert len(points(tmp_path / "here")) == 12 and len(counted.calls) == 12
    shutil.rmtree(tmp_path / "there")
    gflow.sweep(counted, AXES, tmp_path / "here", 2)
    assert len(counted.calls) == 12


def test_a_store_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="store must be a folder; .* is a file"):
        gflow.sweep(untouched, {"a": [1.0]}, tmp_path / "file")
    with pytest.raises(ValueError, match="store must be a folder that can be written to; .*file"):
        gflow.sweep(untouched, {"a": [1.0]}, tmp_path / "file" / "inside")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users on this system")
def test_a_read_only_store_is_refused_before_anything_runs():
    user = os.geteuid()
    _key.environment()  # reads what the other user may not be able to
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        try:
            if user == 0:  # whom no mode of a folder stops
                os.seteuid(65534)
            with pytest.raises(
                ValueError, match="store must be a folder that can be written to; .*Permission"
            ):
                gflow.sweep(untouched, {"a": [1.0]}, folder)
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o755)


DAMAGE = {
    "cut short": lambda data, others: data[: len(data) // 2],
    "empty": lambda data, others: b"",
    "a byte of a number": lambda data, others: data[:-30] + bytes([data[-30] ^ 1]) + data[-29:],
    "noise": lambda data, others: random.Random(0).randbytes(len(data)),
    "a point's own file at another point": lambda data, others: others[0],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_a_point_computed_again(name, counted, store):
    axes = {"a": [0.5, 1.0], "b": [1, 2]}
    whole = gflow.sweep(counted, axes, store, 1)
    files = points(store)
    kept = [file.read_bytes() for file in files]
    files[2].write_bytes(DAMAGE[name](kept[2], kept))
    next(store.rglob("sweep.json")).write_bytes(b"damaged")
    assert gflow.sweep(counted, axes, store, 1).identical(whole) and len(counted.calls) == 5
    assert gflow.sweep(counted, axes, store, 1).identical(whole) and len(counted.calls) == 5


@pytest.mark.slow
def test_any_flipped_bit_is_noticed(store):
    gflow.sweep(product, {"a": [0.3], "b": [0.7]}, store, 1)
    (file,) = points(store)
    data = file.read_bytes()
    for i in range(len(data)):
        file.write_bytes(data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :])
        assert gflow.sweep(product, {"a": [0.3], "b": [0.7]}, store, 1).value == 0.3 * 0.7


FULL = """
import json, resource, sys, warnings
import numpy as np
import gflow
def f(n):
    return {"x": float(n), "many": np.full(100_000, float(n))}
if __name__ == "__main__":
    store, jobs, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    gflow.sweep(f, {"n": [0]}, store, 1)  # while there is room
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        grid = gflow.sweep(f, {"n": range(12)}, store, jobs)
    print(json.dumps({"x": grid.x.values.tolist(), "many": grid.many.mean("many_0").values.tolist(),
                      "said": [str(w.message) for w in said], "error": grid.error.values.tolist()}))
"""


def test_files_that_cannot_be_written_are_told_of_and_the_results_are_there(tmp_path):
    pytest.importorskip("resource")
    store = tmp_path / "store"
    got = json.loads(python(FULL, str(store), "2", "200000"))
    check_full(got, store, "File too large", 1)


def check_full(got, store, why, kept):
    assert got["x"] == list(range(12)) and got["error"] == [""] * 12
    assert got["many"] == list(range(12))
    assert len(points(store)) == kept
    (said,) = [text for text in got["said"] if "store" in text]
    assert f"{12 - kept} of 12 points could not be written to store ({why})" in said
    assert {f.suffix for f in Path(store).rglob("*") if f.is_file()} == {".point", ".json"}


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small disk"
)
def test_a_full_disk_is_told_of_and_the_results_are_there(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        got = json.loads(python(FULL, str(disk / "store"), "1", "0"))
        check_full(got, disk / "store", "No space left on device", 3)
        fill(disk / "rest")
        with pytest.raises(
            ValueError, match="store must be a folder that can be written to; .*No space left"
        ):
            gflow.sweep(untouched, {"a": [1.0]}, disk / "another")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(path):
    """Write until no byte more goes on the disk."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while os.write(file, bytes(512)):
            pass
    os.close(file)
