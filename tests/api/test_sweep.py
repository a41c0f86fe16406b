"""Sweeps: labelled grids, stores that resume and never serve what is old, and what may go wrong on the way."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import types
from pathlib import Path

import joblib
import numpy as np
import pytest
import xarray

import gflow
from gflow import _key
from gflow.sweeps import run, work

PACKAGE = Path(gflow.__file__).parent
AXES = {"a": [0.5, 1.0, 2.0], "b": range(4)}


def product(a, b, factor=1.0):
    return factor * a * b


class Counted:
    """A function on the disk of which stands how often it was called."""

    def __init__(self, path):
        self.path = path

    def __call__(self, a, b):
        count(self.path, f"{a} {b}")
        return a * 10 + b

    @property
    def calls(self):
        return lines(self.path)


def count(path, text):
    """One line in one write: lines of several processes do not mix."""
    file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, f"{text}\n".encode())
    os.close(file)


def lines(path):
    return Path(path).read_text().splitlines() if Path(path).exists() else []


@pytest.fixture
def counted(tmp_path):
    return Counted(str(tmp_path / "calls"))


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def points(store):
    """Files of the finished points."""
    return sorted(Path(store).rglob("*.point"))


# ---- the result --------------------------------------------------------------------------------------------


def test_a_grid_holds_what_the_function_returns_at_each_point():
    grid = gflow.sweep(product, AXES, jobs=1, settings={"factor": 3.0}, units={"a": "1", "value": "1/time"})
    assert grid.value.dims == ("a", "b")
    for a in AXES["a"]:
        for b in AXES["b"]:
            assert grid.value.sel(a=a, b=b) == 3.0 * a * b
    assert (grid.error == "").all()
    assert grid.a.attrs["units"] == "1" and grid.value.attrs["units"] == "1/time"
    assert grid.attrs["function"] == f"{__name__}:product" and json.loads(grid.attrs["settings"]) == {
        "factor": 3.0
    }
    assert json.loads(grid.attrs["axes"]) == {"a": [0.5, 1.0, 2.0], "b": [0, 1, 2, 3]}
    assert len(grid.attrs["gflow_source"]) == len(grid.attrs["function_source"]) == 64


def test_outputs_of_all_kinds_have_their_names_shapes_and_types():
    def function(a, b):
        curve = xarray.DataArray(a * np.arange(3.0), {"t": [0.0, 0.5, 1.0]}, attrs={"long_name": "curve"})
        return {
            "whole": b, "flag": a > 1, "word": f"b is {b}", "table": np.full((2, 3), a + b), "wave": a + 1j * b,
            "curve": curve,
        }  # fmt: skip

    grid = gflow.sweep(function, AXES, jobs=1, units={"t": "time"})
    kinds = {name: grid[name].dtype.kind for name in grid.data_vars if name != "error"}
    assert kinds == {"whole": "i", "flag": "b", "word": "U", "table": "f", "wave": "c", "curve": "f"}
    assert grid.table.dims == ("a", "b", "table_0", "table_1") and grid.curve.dims == ("a", "b", "t")
    assert grid.t.attrs == {"units": "time"} and grid.curve.attrs == {"long_name": "curve"}
    assert grid.word.sel(a=2.0, b=3) == "b is 3" and grid.wave.sel(a=2.0, b=3) == 2 + 3j
    np.testing.assert_array_equal(grid.curve.sel(a=2.0, b=0, t=0.5), 2.0)
    np.testing.assert_array_equal(grid.table.sel(a=0.5, b=1), np.full((2, 3), 1.5))


def test_a_dataset_keeps_its_dimensions_and_all_coordinates():
    def function(a, b):
        return xarray.Dataset(
            {"u": ("t", np.array([a, b])), "v": ((), a)},
            {"t": [1, 2], "label": ("t", ["x", "y"]), "single": a + b},
        )

    grid = gflow.sweep(function, AXES, jobs=1)
    assert grid.u.dims == ("a", "b", "t") and grid.v.dims == ("a", "b")
    assert list(grid.label.values) == ["x", "y"] and grid.u.sel(a=2.0, b=3, t=2) == 3
    assert (grid.single == grid.a + grid.b).all()


def test_axes_keep_attributes_and_reach_the_function_as_plain_values():
    kinds = []

    def function(scale, name, flag, n):
        kinds.append((type(scale), type(name), type(flag), type(n)))
        return 0.0

    scale = xarray.DataArray([0.1, 1.0], dims="x", attrs={"units": "m", "long_name": "scale"})
    axes = {"scale": scale, "name": ["x", "y"], "flag": [True, False], "n": np.arange(2)}
    grid = gflow.sweep(function, axes, jobs=1)
    assert grid.scale.attrs == {"units": "m", "long_name": "scale"}
    assert set(kinds) == {(float, str, bool, int)} and grid.value.shape == (2, 2, 2, 2)


@pytest.mark.parametrize("engine", ["scipy", None])
def test_a_grid_goes_through_a_netcdf_file(tmp_path, engine):
    def function(a, b):
        if a == 2.0 and b == 1:
            raise ValueError("no such point: α")
        return {"value": a, "n": b, "text": f"{b}", "curve": np.array([a, b])}

    with pytest.warns(UserWarning, match="1 of 12 points failed"):
        grid = gflow.sweep(function, AXES, jobs=1, settings={}, units={"a": "1"})
    grid.to_netcdf(tmp_path / "grid.nc", engine=engine)
    back = xarray.load_dataset(tmp_path / "grid.nc", engine=engine)
    xarray.testing.assert_identical(grid.drop_vars(["error", "text"]), back.drop_vars(["error", "text"]))
    assert (back.error == grid.error).all() and (back.text == grid.text).all()


def test_processes_threads_and_this_process_give_the_same_bits():
    here = gflow.sweep(escape, ESCAPES, jobs=1)
    with joblib.parallel_config(backend="threading"):
        threads = gflow.sweep(escape, ESCAPES, jobs=2)
    assert gflow.sweep(escape, ESCAPES, jobs=2).identical(here) and threads.identical(here)
    for scale in ESCAPES["scale"]:
        assert here.value.sel(scale=scale, depth=2) == pytest.approx(2 * np.log(1 / scale) / 2, rel=1e-3)


ESCAPES = {"scale": [1e-3, 1e-2], "depth": [2, 3]}


def escape(scale, depth):
    """Time at which w = Π w_l has half its limit: of two layers, s(t) = 1 / (1 + (1/s₀ - 1) e^(-2t))."""
    problem = gflow.Problem.factorization([[1.0]])
    model = gflow.DeepLinear((1,) * (depth + 1))
    # measured at fixed times, interpolated: the same bits wherever it runs
    t = np.linspace(0.0, 200.0 if depth > 2 else 20.0, 4001)
    end_to_end = gflow.flow(model, problem, [scale] * depth, t).theta.prod(axis=1)
    return np.interp(0.5, end_to_end, t)


@pytest.mark.parametrize("jobs", [1, 2])
def test_blas_keeps_to_one_thread_in_every_worker(jobs):
    grid = gflow.sweep(blas_threads, {"n": range(4)}, jobs=jobs)
    assert (grid.value == 1).all()


def blas_threads(n):
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_info

    return max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")


def test_progress_shows_all_points(capsys):
    gflow.sweep(product, AXES, jobs=1, progress=True)
    assert "100%" in capsys.readouterr().out


# ---- bad input ---------------------------------------------------------------------------------------------


def untouched(a, b=0):
    raise AssertionError("it ran")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"function": 3}, r"function must be callable; got 3"),
        ({"axes": {}}, r"axes must be a dict of names to values"),
        ({"axes": [("a", [1])]}, r"axes must be a dict of names to values"),
        ({"axes": {"a": []}}, r"axes\['a'\] must have at least one value"),
        ({"axes": {"c": [1]}}, r"axes must have names of parameters of the function \(a, b\); got 'c'"),
        ({"axes": {"b": [1]}}, r"every parameter of the function without a default; 'a' is in neither"),
        ({"axes": {"a": [1, 2, 1]}}, r"axes\['a'\] must have no value twice; 1 came more than once"),
        ({"axes": {"a": [1.0, np.nan]}}, r"axes\['a'\] must have no NaN"),
        ({"axes": {"a": [None, 1]}}, r"axes\['a'\] must have values that can be coordinates"),
        ({"axes": {"a": [len, abs]}}, r"axes\['a'\] must have values that can be coordinates"),
        ({"axes": {"a": ["x", 1]}}, r"axes\['a'\] must have values that can be coordinates: all numbers"),
        ({"axes": {"a": [True, 2]}}, r"axes\['a'\] must have values that can be coordinates"),
        ({"axes": {"a": [1j]}}, r"axes\['a'\] must have values that can be coordinates"),
        ({"axes": {"a": [[1, 2], [3, 4]]}}, r"axes\['a'\] must have one dimension; got shape \(2, 2\)"),
        ({"axes": {"a": [[1], [3, 4]]}}, r"axes\['a'\] must be a sequence of numbers or strings"),
        ({"axes": {"a": "text"}}, r"axes\['a'\] must be a sequence of numbers or strings; got 'text'"),
        ({"axes": {"a": 3.0}}, r"axes\['a'\] must be a sequence of numbers or strings; got 3.0"),
        ({"axes": {"a b": [1]}}, r"axes must have names of keyword arguments; got 'a b'"),
        ({"axes": {"error": [1]}}, r"axes must not have the name 'error'"),
        ({"jobs": 0}, r"jobs must be a whole number >= 1, or -1 for all cores; got 0"),
        ({"jobs": 1.5}, r"jobs must be a whole number >= 1, or -1 for all cores; got 1.5"),
        ({"settings": [1]}, r"settings must be a dict of names to values"),
        ({"settings": {"c": 1}}, r"settings must have names of parameters of the function \(a, b\); got 'c'"),
        ({"settings": {"a": 1}}, r"settings must not have the name of an axis; both have 'a'"),
        ({"units": "m"}, r"units must be a dict of names to text"),
        ({"units": {"a": 1}}, r"units must be a dict of names to text"),
        ({"progress": 1}, r"progress must be True or False; got 1"),
        ({"store": 3}, r"store must be the path of a folder or None; got 3"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named_before_anything_runs(arguments, message):
    with pytest.raises(ValueError, match=message):
        gflow.sweep(**({"function": untouched, "axes": {"a": [1.0, 2.0]}, "jobs": 1} | arguments))


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


def test_what_cannot_be_sent_to_workers_or_hashed_is_refused(store):
    lock = __import__("threading").Lock()

    def locked(a):
        with lock:
            return a

    with pytest.raises(ValueError, match="function and settings must be .* cannot be pickled"):
        gflow.sweep(locked, {"a": [1.0]}, jobs=2)
    ufunc = np.frompyfunc(lambda a: 2 * a, 1, 1)
    with pytest.raises(ValueError, match="store needs a key .*ufunc, which .* reads is a ufunc, whose code"):
        gflow.sweep(lambda a: ufunc(a), {"a": [1.0]}, store, jobs=1)
    with pytest.raises(ValueError, match="store needs a key .*lock, which .*locked reads is a lock"):
        gflow.sweep(locked, {"a": [1.0]}, store, jobs=1)
    assert gflow.sweep(locked, {"a": [1.0]}, jobs=1).value == 1.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda a: None, r"function must return a number, .*; at a=1.0 it returned a NoneType"),
        (lambda a: b"x", r"at a=1.0 it returned a bytes"),
        (lambda a: np.ma.masked_array([a], [True]), r"at a=1.0 it returned a MaskedArray"),
        (lambda a: {}, r"at a=1.0 it returned an empty dict"),
        (lambda a: {1: a}, r"at a=1.0 it returned a dict with the key 1; wanted names"),
        (lambda a: [[1], [1, 2]], r"at a=1.0 it returned \[\[1\], \[1, 2\]\] as 'value'"),
        (lambda a: {"a": a}, r"at a=1.0 it returned an output named 'a', which is the name of an axis"),
        (lambda a: {"x": xarray.DataArray([a], {"t": [1]}), "y": xarray.DataArray([a, a], {"t": [1, 2]})},
         r"at a=1.0 it returned outputs of which 'y' has other coordinates 't' than one before it"),
        (lambda a: {"x": xarray.DataArray([a], dims="t"), "y": xarray.DataArray([a, a], dims="t")},
         r"at a=1.0 it returned outputs that do not fit into one Dataset: .*conflicting sizes"),
        (lambda a: {"error": a}, r"at a=1.0 it returned an output named 'error'"),
        (lambda a: gflow.flow(gflow.DeepLinear((1, 1)), gflow.Problem.factorization([[1.0]]), [a], 1.0),
         r"must return a number, .* returned a Trajectory \(of a trajectory, such as trajectory.loss"),
    ],
)  # fmt: skip
def test_a_function_that_returns_no_output_at_any_point_is_told_so(function, message):
    with pytest.raises(ValueError, match=message):
        gflow.sweep(function, {"a": [1.0, 2.0]}, jobs=1)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda: np.zeros(2), r"same names and shapes .* at a=1 it returned value \(2,\) of numbers, at a=2 value \(\) of numbers"),
        (lambda: {"y": 1}, r"at a=1 it returned y \(\) of numbers, at a=2 value \(\) of numbers"),
        (lambda: "text", r"at a=1 it returned value \(\) of text"),
        (lambda: None, r"function must return a number, .*; it returned a NoneType"),
        (lambda: {"a": 1}, r"it returned an output named 'a'"),
        (lambda: gflow, r"it returned a module"),
    ],
)  # fmt: skip
def test_the_points_that_fit_no_grid_with_most_others_are_missing(odd, message, store):
    """Also if the first one is: what is finished is never lost."""
    for kept in (None, store, store):
        with pytest.warns(UserWarning, match="1 of 5 points failed and are missing, the first at a=1"):
            grid = gflow.sweep(lambda a: odd() if a == 1 else a, {"a": range(1, 6)}, kept, 1)
        np.testing.assert_array_equal(grid.value, [np.nan, 2, 3, 4, 5])
        assert re.search(message, grid.error.values[0]) and (grid.error[1:] == "").all()


def test_the_points_whose_coordinates_are_not_those_of_most_are_missing():
    with pytest.warns(UserWarning, match="1 of 3 points failed"):
        grid = gflow.sweep(
            lambda a: xarray.DataArray([a, a], {"t": [0, max(a, 2)]}), {"a": [1, 2, 3]}, jobs=1
        )
    assert list(grid.t) == [0, 2] and np.isnan(grid.value.sel(a=3)).all() and (grid.value.sel(a=2) == 2).all()
    assert re.search(
        r"same coordinates .* at a=3 it returned value \(2,\) .*t \[0 3\]\), at a=1 .*t \[0 2\]\)",
        grid.error.values[2],
    )


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_hopeless_sweep_ends_early(counted, jobs, store):
    """As does that of curves at the times of an adaptive method."""
    function = functools.partial(curve_or_none, counted)
    with pytest.raises(ValueError, match="it returned a NoneType"):
        gflow.sweep(function, {"a": [0], "b": range(500)}, store, jobs)
    assert 20 <= len(counted.calls) < 500
    with pytest.warns(UserWarning, match="those of 20 points were all different: .* points were not run"):
        grid = gflow.sweep(function, {"a": [1], "b": range(1, 500)}, store, jobs)
    assert np.isfinite(grid.value).any(dim="value_0").sum() == 1 and len(counted.calls) < 999


def curve_or_none(counted, a, b):
    counted(a, b)
    return np.ones(b) if a else None


# ---- failing points ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_failing_points_are_missing_with_their_error_and_run_again(store, tmp_path, jobs):
    calls, cure = str(tmp_path / "calls"), tmp_path / "cure"

    def function(a, b):
        count(calls, f"{a} {b}")
        if b == 2 and not cure.exists():
            raise ZeroDivisionError(f"b is {b}")
        return {"n": b, "x": a * b, "flag": True, "word": "w", "curve": np.array([b, b])}

    with pytest.warns(
        UserWarning, match=r"3 of 12 points failed .* at a=0.5, b=2: ZeroDivisionError: b is 2"
    ) as seen:
        grid = gflow.sweep(function, AXES, store, jobs)
    assert len([w for w in seen if w.category is UserWarning]) == 1
    bad = grid.b == 2
    assert (grid.error.sel(b=2) == "ZeroDivisionError: b is 2").all() and (
        grid.error.where(~bad, "") == ""
    ).all()
    for name in ("n", "x", "flag"):
        assert grid[name].dtype == float and (np.isnan(grid[name]) == bad).all()
    assert np.isnan(grid.curve.sel(b=2)).all() and (grid.word.sel(b=2) == "").all()
    assert (grid.n.sel(b=3) == 3).all() and "3 of 12 points failed" in grid.attrs["notes"]
    assert len(lines(calls)) == 12

    cure.touch()
    again = gflow.sweep(function, AXES, store, jobs)
    assert len(lines(calls)) == 15 and all(line.endswith(" 2") for line in lines(calls)[12:])
    assert again.n.dtype == int and again.flag.dtype == bool and (again.error == "").all()
    xarray.testing.assert_equal(
        again.drop_vars(["error", "word"]), gflow.sweep(function, AXES, jobs=1).drop_vars(["error", "word"])
    )


def test_a_sweep_of_which_all_points_fail_says_so():
    with pytest.warns(UserWarning, match="2 of 2 points failed"):
        grid = gflow.sweep(lambda a: 1 / 0, {"a": [1, 2]}, jobs=1)
    assert list(grid.data_vars) == ["error"] and (grid.error == "ZeroDivisionError: division by zero").all()


class Speechless(BaseException):
    """No Exception, and without a text."""

    def __str__(self):
        raise RuntimeError


def speechless(a):
    if a == 1:
        raise Speechless
    return a


@pytest.mark.parametrize("jobs", [1, 2])
def test_whatever_a_point_raises_the_others_are_there(jobs):
    with pytest.warns(UserWarning, match="1 of 3 points failed .* at a=1: .*Speechless"):
        grid = gflow.sweep(speechless, {"a": range(3)}, jobs=jobs)
    np.testing.assert_array_equal(grid.value, [0, np.nan, 2])


def test_whole_numbers_that_floats_cannot_hold_are_told_of():
    with pytest.warns(UserWarning, match="1 of 2 points failed .* 'value' has whole numbers above 2"):
        gflow.sweep(lambda a: 2**60 + 1 if a else 1 // a, {"a": [0, 1]}, jobs=1)
    with pytest.warns(UserWarning, match="'value' has whole numbers above 2.*others are no whole numbers"):
        gflow.sweep(lambda a: 2**60 + 1 if a else 0.5, {"a": [0, 1]}, jobs=1)


def test_units_of_nothing_are_told_of():
    with pytest.warns(UserWarning, match="units has 'alpha', which is neither an axis nor an output"):
        gflow.sweep(product, AXES, jobs=1, units={"alpha": "1"})


def test_what_is_finished_when_a_backend_fails_is_returned(monkeypatch, store):
    real = run.joblib.Parallel

    class Failing(real):
        """Loses its cluster after four points."""

        def __call__(self, calls):
            for number, outcome in enumerate(super().__call__(calls)):
                if number == 4:
                    raise TimeoutError("no workers")
                yield outcome

    monkeypatch.setattr(run.joblib, "Parallel", Failing)
    with pytest.warns(UserWarning, match=r"TimeoutError: no workers: 8 of 12 points were not run .* goes on"):
        grid = gflow.sweep(product, AXES, store, 1)
    assert sorted(set(grid.error.values.ravel())) == ["", "not run: TimeoutError: no workers"]
    assert np.isnan(grid.value).sum() == 8
    monkeypatch.undo()
    assert (gflow.sweep(product, AXES, store, 1).error == "").all()


@pytest.mark.slow
def test_a_point_whose_worker_dies_is_missing_and_the_others_are_there(store):
    with pytest.warns(UserWarning, match=r"1 of 40 points failed .* at n=7: TerminatedWorkerError"):
        grid = gflow.sweep(deadly, {"n": range(40)}, store, 2)
    assert np.isnan(grid.value.sel(n=7)) and "worker process that ran it died" in grid.error.sel(n=7).item()
    rest = grid.drop_sel(n=7)
    assert (rest.value == 2 * rest.n).all() and (rest.error == "").all() and len(points(store)) == 39


def deadly(n):
    if n == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * n


# ---- the store ---------------------------------------------------------------------------------------------


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


HELPERS = {
    "the same": ("def f(a): return K * a\nK = 2\n", "# a comment\n\ndef f(a):\n    return K * a\nK = 2\n", True),
    "an unread global": ("K = 2\nL = 1\ndef f(a): return K * a", "K = 2\nL = 2\ndef f(a): return K * a", True),
    "its code": ("def f(a): return 2 * a", "def f(a): return 3 * a", False),
    "a default": ("def f(a, k=2): return k * a", "def f(a, k=3): return k * a", False),
    "a keyword's default": ("def f(a, *, k=2): return k * a", "def f(a, *, k=3): return k * a", False),
    "a global": ("K = 2\ndef f(a): return K * a", "K = 3\ndef f(a): return K * a", False),
    "a global's type": ("K = 2\ndef f(a): return K * a", "K = 2.0\ndef f(a): return K * a", False),
    "an array": ("import numpy as np\nK = np.arange(3)\ndef f(a): return K @ K * a",
                 "import numpy as np\nK = np.arange(4)\ndef f(a): return K @ K * a", False),
    "a table": ("K = {'x': [1, (2, 3)]}\ndef f(a): return K['x'][0] * a", "K = {'x': [1, (2, 4)]}\ndef f(a): return K['x'][0] * a", False),
    "a helper": ("def g(a): return 2 * a\ndef f(a): return g(a)", "def g(a): return 3 * a\ndef f(a): return g(a)", False),
    "a helper's helper": ("def h(a): return 2 * a\ndef g(a): return h(a)\ndef f(a): return g(a)",
                          "def h(a): return 3 * a\ndef g(a): return h(a)\ndef f(a): return g(a)", False),
    "one that calls itself": ("def f(a): return a if a < 1 else f(a - 1)", "def f(a): return a if a < 2 else f(a - 1)", False),
    "an inner function": ("def f(a):\n    def g(): return 2 * a\n    return g()", "def f(a):\n    def g(): return 3 * a\n    return g()", False),
    "a lambda": ("f = lambda a: 2 * a", "f = lambda a: 3 * a", False),
    "what it encloses": ("def make(k):\n    def f(a): return k * a\n    return f\nf = make(2)",
                         "def make(k):\n    def f(a): return k * a\n    return f\nf = make(3)", False),
    "what a lambda in it encloses": ("def make(k):\n    g = lambda a: k * a\n    return lambda a: g(a)\nf = make(2)",
                                     "def make(k):\n    g = lambda a: k * a\n    return lambda a: g(a)\nf = make(3)", False),
    "a partial's keyword": ("from functools import partial\ndef g(a, k): return k * a\nf = partial(g, k=2)",
                            "from functools import partial\ndef g(a, k): return k * a\nf = partial(g, k=3)", False),
    "a partial's function": ("from functools import partial\ndef g(a, k): return k * a\nf = partial(g, k=2)",
                             "from functools import partial\ndef g(a, k): return k + a\nf = partial(g, k=2)", False),
    "a decorated function": ("import functools\ndef d(g):\n    @functools.wraps(g)\n    def w(a): return g(a)\n    return w\n@d\ndef f(a): return 2 * a",
                             "import functools\ndef d(g):\n    @functools.wraps(g)\n    def w(a): return g(a)\n    return w\n@d\ndef f(a): return 3 * a", False),
    "the decorator": ("import functools\ndef d(g):\n    @functools.wraps(g)\n    def w(a): return g(a)\n    return w\n@d\ndef f(a): return 2 * a",
                      "import functools\ndef d(g):\n    @functools.wraps(g)\n    def w(a): return g(a) + 1\n    return w\n@d\ndef f(a): return 2 * a", False),
    "a cached function": ("import functools\n@functools.cache\ndef g(a): return 2 * a\ndef f(a): return g(a)",
                          "import functools\n@functools.cache\ndef g(a): return 3 * a\ndef f(a): return g(a)", False),
    "compiled code": ("import numba\n@numba.njit\ndef g(a): return 2 * a\ndef f(a): return g(a)",
                      "import numba\n@numba.njit\ndef g(a): return 3 * a\ndef f(a): return g(a)", False),
    "a method": ("class C:\n    def g(self, a): return 2 * a\nc = C()\ndef f(a): return c.g(a)",
                 "class C:\n    def g(self, a): return 3 * a\nc = C()\ndef f(a): return c.g(a)", False),
    "a base class": ("class B:\n    def g(self, a): return 2 * a\nclass C(B): pass\ndef f(a): return C().g(a)",
                     "class B:\n    def g(self, a): return 3 * a\nclass C(B): pass\ndef f(a): return C().g(a)", False),
    "an object's state": ("class C:\n    def __init__(self, k): self.k = k\nc = C(2)\ndef f(a): return c.k * a",
                          "class C:\n    def __init__(self, k): self.k = k\nc = C(3)\ndef f(a): return c.k * a", False),
    "an object with slots": ("class C:\n    __slots__ = ('k',)\n    def __init__(self, k): self.k = k\nc = C(2)\ndef f(a): return c.k * a",
                             "class C:\n    __slots__ = ('k',)\n    def __init__(self, k): self.k = k\nc = C(3)\ndef f(a): return c.k * a", False),
    "a bound method's object": ("class C:\n    def __init__(self, k): self.k = k\n    def g(self, a): return self.k * a\nf = C(2).g",
                                "class C:\n    def __init__(self, k): self.k = k\n    def g(self, a): return self.k * a\nf = C(3).g", False),
    "a callable object": ("class C:\n    def __call__(self, a): return 2 * a\nf = C()",
                          "class C:\n    def __call__(self, a): return 3 * a\nf = C()", False),
    "a problem": ("import gflow\nP = gflow.Problem.factorization([[2.0]])\ndef f(a): return P.Y.sum() * a",
                  "import gflow\nP = gflow.Problem.factorization([[3.0]])\ndef f(a): return P.Y.sum() * a", False),
    "the same problem": ("import gflow\nP = gflow.Problem.factorization([[2.0]])\ndef f(a): return P.Y.sum() * a",
                         "import gflow\nP = gflow.Problem.factorization([[2.0]])\nP.__dict__.setdefault('x', 0) and 0\ndel P.__dict__['x']\ndef f(a): return P.Y.sum() * a", True),
    "a table's order": ("K = {'x': 2, 'y': 3}\ndef f(a): return list(K.values())[0] * a", "K = {'y': 3, 'x': 2}\ndef f(a): return list(K.values())[0] * a", False),
    "how it is compiled": ("import numba\n@numba.njit\ndef f(a): return 2 * a", "import numba\n@numba.njit(fastmath=True)\ndef f(a): return 2 * a", False),
    "a metaclass": ("class M(type):\n    def g(c, a): return 2 * a\nclass C(metaclass=M): pass\ndef f(a): return C.g(a)",
                    "class M(type):\n    def g(c, a): return 3 * a\nclass C(metaclass=M): pass\ndef f(a): return C.g(a)", False),
    "an operator that is a partial": ("from functools import partial\nclass C: __call__ = partial(max, 2)\nf = C()",
                                      "from functools import partial\nclass C: __call__ = partial(max, 3)\nf = C()", False),
    "what a try covers": ("def f(a):\n    try:\n        a = g(a)\n        a = g(a)\n    except KeyError:\n        a = 0\n    return a\ndef g(a): return a",
                          "def f(a):\n    try:\n        a = g(a)\n    except KeyError:\n        a = 0\n    a = g(a)\n    return a\ndef g(a): return a", False),
}  # fmt: skip


@pytest.mark.parametrize("name", HELPERS)
def test_what_a_function_reads_is_in_its_key(name, tmp_path, monkeypatch):
    before, after, same = HELPERS[name]
    monkeypatch.syspath_prepend(tmp_path)
    keys = [_key.key_of(load(tmp_path, "mod_of_user", text).f, {})[0] for text in (before, before, after)]
    assert keys[0] == keys[1]
    assert (keys[1] == keys[2]) == same


def load(folder, name, text):
    """A module of this text, imported anew."""
    (folder / f"{name}.py").write_text(text)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module(name)


@pytest.mark.parametrize("use", ["import helper_of_user\ndef f(a): return helper_of_user.g(a)",
                                 "from helper_of_user import g\ndef f(a): return g(a)",
                                 "def f(a):\n    from helper_of_user import g\n    return g(a)",
                                 "def f(a):\n    import helper_of_user as h\n    return h.g(a)",
                                 "import helper_of_user\ndef f(a): return (lambda: helper_of_user.g(a))()",
        "import helper_of_user as h\ndef f(a): return [h][0].g(a)",
        "import helper_of_user as h\ndef f(a): return getattr(h, 'K')[0] * h.g(a)",
        "def f(a):\n    from helper_of_user import __doc__, g\n    return g(a)",
        "import helper_of_user\nclass C:\n    def g(self, a): return helper_of_user.g(a)\nc = C()\ndef f(a): return c.g(a)"])  # fmt: skip
def test_helpers_of_other_modules_are_in_the_key(use, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for text in ("K = [2]\ndef g(a): return K[0] * a", "# \nK = [2]\ndef g(a): return K[0] * a", "K = [3]\ndef g(a): return K[0] * a",
                 "K = [2]\ndef g(a): return K[0] + a"):  # fmt: skip
        load(tmp_path, "helper_of_user", text)
        keys.append(_key.key_of(load(tmp_path, "mod_of_user", use).f, {})[0])
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_the_file_of_compiled_code_of_the_users_is_in_the_key(tmp_path, monkeypatch):
    class Compiled:  # pickles by its name alone, as functions of Cython do
        __module__ = "compiled_of_user"

        def __reduce__(self):
            return "g"

    module = types.ModuleType("compiled_of_user")
    module.__file__ = str(tmp_path / "compiled_of_user.so")
    monkeypatch.setitem(sys.modules, "compiled_of_user", module)
    keys = []
    for data in (b"one", b"one", b"another"):
        Path(module.__file__).write_bytes(data)
        keys.append(_key.key_of(product, {"g": Compiled()})[0])
    assert keys[0] == keys[1] != keys[2]


def test_settings_and_versions_are_in_the_key(monkeypatch):
    def key(**settings):
        return _key.key_of(product, settings)[0]

    keys = [key(), key(factor=1.0), key(factor=1), key(factor=np.ones(2)), key(factor=np.ones((2, 1)))]
    monkeypatch.setattr(_key, "versions", lambda: {"gflow": "another"})
    keys.append(key())
    monkeypatch.undo()
    monkeypatch.setattr(_key, "gflow_source", lambda: "another")
    keys.append(key())
    assert len(set(keys)) == 7


def test_keys_are_the_same_in_another_process(tmp_path):
    text = """
        import sys; sys.path.insert(0, {folder!r})
        import mod_of_user
        from gflow import _key
        print(_key.key_of(mod_of_user.f, {{"names": {{"x", "y", "zebra", "word"}}, "n": 3}})[0])
    """
    (tmp_path / "mod_of_user.py").write_text(
        "import dataclasses, enum, re, numpy as np, gflow\nfrom scipy.stats import norm\nclass E(enum.Enum):\n    A = 1\n    B = 'b'\n"
        "@dataclasses.dataclass(frozen=True)\nclass D:\n    k: int = 2\n    s: tuple = ('x', E.B)\n"
        "d = D()\nm = gflow.DeepLinear((2, 2, 2))\nr = np.random.default_rng(1)\np = re.compile('x')\n"
        "def f(a): return a * d.k + m.size + {'p', 'q', 'rr'}.__len__() + r.random() + norm.pdf(a) + len(p.pattern)\n"
    )
    script = textwrap.dedent(text.format(folder=str(tmp_path)))
    found = {python(script, PYTHONHASHSEED=seed).strip() for seed in ("1", "2")}
    assert len(found) == 1


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


@pytest.mark.slow
def test_another_source_of_gflow_gives_no_old_results(tmp_path):
    package = tmp_path / "other" / "gflow"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    calls = tmp_path / "calls"
    run = f"gflow.sweep(f, AXES, {str(tmp_path / 'store')!r}, 1)"
    script = SCRIPT.format(count=COUNT, body="return a + b", run=f"{run}; {run}")
    python(script, str(calls), package=package)
    assert len(lines(calls)) == 12
    with open(package / "observe.py", "a") as file:
        file.write("\n# another line\n")
    python(script, str(calls), package=package)
    assert len(lines(calls)) == 24

    stale = "import os; os.utime(gflow.__path__[0] + '/observe.py', (2e9, 2e9)); "
    script = SCRIPT.format(count=COUNT, body="return a + b", run=stale + run)
    with pytest.raises(
        AssertionError, match="ValueError: store needs .*observe.py has changed since this process"
    ):
        python(script, str(calls), package=package)
    assert len(lines(calls)) == 24


def test_workers_refuse_a_helper_that_was_edited_after_its_import(tmp_path, store, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = load(tmp_path, "edited_of_user", "K = 2\ndef f(a): return K * a")
    module.K = 5  # here, but not in what a worker imports
    with pytest.raises(
        ValueError, match=r"the same in the workers as here; .* edited_of_user:K is not what it is"
    ):
        gflow.sweep(module.f, {"a": [1, 2]}, store, 2)
    module.K = 2
    (tmp_path / "edited_of_user.py").write_text("K = 2\ndef f(a): return K + a + 1")
    run._new_workers()  # older ones have imported what this process has, and may run it
    with pytest.raises(
        ValueError, match=r"the same in the workers as here; .* edited_of_user:f is not what it is"
    ):
        gflow.sweep(module.f, {"a": [1, 2]}, store, 2)
    assert points(store) == []
    assert list(gflow.sweep(module.f, {"a": [1, 2]}, store, 1).value) == [2, 4]


def test_a_helper_that_was_edited_and_imported_anew_reaches_the_workers(tmp_path, store, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for k in (2, 3):
        module = load(tmp_path, "reloaded_of_user", f"K = {k}\ndef f(a): return K * a")
        assert list(gflow.sweep(module.f, {"a": [1, 2]}, store, 2).value) == [k, 2 * k]


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


# ---- other processes ---------------------------------------------------------------------------------------

COUNT = """
def count(text):
    file = os.open(sys.argv[1], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, f"{text}\\n".encode())
    os.close(file)
"""
SCRIPT = """
import json, os, sys
import numpy as np
import gflow
AXES = {{"a": [0.5, 1.0, 2.0], "b": range(4)}}
{count}
def f(a, b):
    count(f"{{a}} {{b}}")
    {body}
if __name__ == "__main__":
    {run}
"""


def start(script, *arguments, package=PACKAGE, **environment):
    """A process that runs a file, in a group of its own with its workers."""
    path = Path(FOLDER.name) / f"script{random.getrandbits(40)}.py"
    path.write_text(script)
    return subprocess.Popen(
        [sys.executable, str(path), *arguments], env=os.environ | {"PYTHONPATH": str(package.parent)} | environment,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


FOLDER = tempfile.TemporaryDirectory()
TIMEOUT = 600  # seconds: nothing but a machine that hangs takes so long


def python(script, *arguments, **options):
    process = start(script, *arguments, **options)
    out, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, error
    return out


def wait_for(condition, process=None):
    """Poll until a condition holds; an error if the process ends before, or if it never does."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError("the process ended before:\n" + process.communicate()[1])
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill(process, how=signal.SIGKILL):
    """Send a signal to a process and its workers."""
    os.killpg(process.pid, how)


NORMS = """
import numpy as np
def norms(seed, scale):
    A = np.random.default_rng(seed).standard_normal((8, 8))
    return {"norm": scale * np.linalg.norm(A, 2), "values": np.linalg.svd(A)[1] * scale, "square": seed**2}
AXES = {"seed": range(400), "scale": [0.25, 0.5, 1.0, 2.0, 4.0]}
"""
LONG = f"""
import os, sys, time
import gflow
{COUNT}
{NORMS}
def f(seed, scale):
    count(f"{{seed}} {{scale}}")
    while sum(1 for line in open(sys.argv[1])) > int(sys.argv[4]):  # it is to be killed
        time.sleep(0.01)
    return norms(seed, scale)
if __name__ == "__main__":
    for _ in range(2):  # the second call computes nothing
        gflow.sweep(f, AXES, sys.argv[2], 2).to_netcdf(sys.argv[3])
"""


@pytest.mark.slow
def test_a_sweep_killed_three_times_loses_only_what_was_in_flight(tmp_path, record_property):
    calls, rng = tmp_path / "calls", random.Random()
    arguments = str(tmp_path / "store"), str(tmp_path / "grid.nc")
    repeats = [0]
    for part in range(3):
        enough = rng.randint(500 * part + 20, 500 * part + 480)  # a random moment, with some work left
        process = start(LONG, str(calls), *arguments, str(500 * part + 600))
        wait_for(lambda enough=enough: len(lines(calls)) >= enough, process)
        kill(process)
        process.communicate()
        assert len(lines(calls)) < 2000
        repeats.append(len(lines(calls)) - len(set(lines(calls))))
    python(LONG, str(calls), *arguments, "10000")
    seen = lines(calls)
    repeats.append(len(seen) - len(set(seen)))
    record_property("repeats", repeats)
    print("points computed twice, after each start:", repeats)
    assert len(set(seen)) == 2000
    # after each kill: at most those in flight in its two workers
    assert repeats[1] == 0 and all(b - a <= 2 for a, b in zip(repeats, repeats[1:], strict=False))

    names: dict = {}
    exec(NORMS, names)
    whole = gflow.sweep(names["norms"], names["AXES"], jobs=1)
    resumed = xarray.load_dataset(arguments[1])
    xarray.testing.assert_equal(resumed.drop_vars("error"), whole.drop_vars("error"))
    assert (resumed.error == "").all() and resumed.norm.shape == (400, 5)


FLOW = """
import numpy as np
import gflow
def loss(n):
    problem = gflow.Problem.factorization(np.diag([1.0, 0.5]))
    model = gflow.DeepLinear((2, 2, 2))
    theta0 = model.init("gaussian", scale=0.1, rng=n)
    return gflow.flow(model, problem, theta0, [40.0, 1e4], rtol=1e-12, method="dop853").loss[-1]
"""
INTERRUPTED = f"""
import json, os, signal, sys, time
{COUNT}
{FLOW}
def f(n):
    count(n)
    while n > 40 and sys.argv[4] == "1000":  # it is to be interrupted
        time.sleep(0.01)
    return loss(n)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background inherit that it is ignored
    size = int(sys.argv[4])
    grid = gflow.sweep(f, {{"n": range(size)}}, sys.argv[2], int(sys.argv[3]))
    values = grid.value.values if "value" in grid else np.full(size, np.nan)
    print(json.dumps([values.tolist(), grid.error.values.tolist(), grid.attrs.get("notes", "")]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupt_returns_what_is_there_and_no_half_of_a_flow(tmp_path, jobs):
    calls, store = tmp_path / "calls", tmp_path / "store"
    process = start(INTERRUPTED, str(calls), str(store), str(jobs), "1000")
    wait_for(lambda: len(lines(calls)) >= 10, process)
    kill(process, signal.SIGINT)  # as a terminal does: to all of them
    out, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, error
    values, errors, notes = json.loads(out)
    gone = [text != "" for text in errors]
    assert 1 <= sum(gone) <= 999 and {text for text in errors if text} == {"not run: interrupted"}
    assert "points were not run and are missing; the same call goes on" in notes and "interrupted" in error
    assert 1000 - sum(gone) == len(points(store)) and 0 <= len(lines(calls)) - len(points(store)) <= jobs

    # as many again as were reached, with those in flight among them
    size = len(lines(calls)) + 4
    whole, errors, _ = json.loads(python(INTERRUPTED, str(calls), str(store), "1", str(size)))
    names: dict = {}
    exec(FLOW, names)
    assert errors == [""] * size and whole == [names["loss"](n) for n in range(size)]
    seen = lines(calls)
    assert len(set(seen)) == size and len(seen) <= size + jobs
    for before, after, missing in zip(values, whole, gone, strict=False):
        assert np.isnan(before) if missing else before == after


@pytest.mark.slow
def test_two_sweeps_at_once_share_a_store(tmp_path):
    """Two of the same function, and one of another of the same name: nothing is cleared, nothing mixed."""
    store = str(tmp_path / "store")
    call = f"gflow.sweep(f, {{'a': np.arange(60) / 4, 'b': range(4)}}, {store!r}, int(sys.argv[2]))"
    run = f"{call}; print({call}.value.values.tolist())"  # the second call computes nothing
    scripts = [SCRIPT.format(count=COUNT, body=body, run=run) for body in ("return a + b", "return a * b")]
    calls = [str(tmp_path / name) for name in ("sum", "sum", "product")]
    processes = [
        start(scripts[i], calls[n], jobs) for n, (i, jobs) in enumerate(((0, "2"), (0, "1"), (1, "1")))
    ]
    done = [process.communicate(timeout=TIMEOUT) for process in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], done
    a, b = np.arange(60)[:, None] / 4, np.arange(4)
    for (out, _), expected in zip(done, (a + b, a + b, a * b), strict=True):
        assert json.loads(out) == expected.tolist()
    sums, products = lines(calls[0]), lines(calls[2])
    assert len(set(sums)) == 240 and len(sums) <= 480 and len(products) == 240
    assert len(points(store)) == 480


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


DASK = f"""
import json, os, signal, sys, threading, time
import joblib
from dask.distributed import Client, LocalCluster
{COUNT}
{FLOW}
def f(n):
    count(f"{{n}} {{os.getpid()}}")
    matrix = np.random.default_rng(n).standard_normal((40, 40))
    return {{"loss": loss(n) if n % 4 == 0 else 0.0, "values": np.linalg.svd(matrix @ matrix.T)[1]}}

def deadly(n):
    if n == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return n

def seen():
    return [line.split() for line in open(sys.argv[1])] if os.path.exists(sys.argv[1]) else []

def murder(killed):
    while len(seen()) < 40:
        time.sleep(0.002)
    killed.append(int(seen()[-1][1]))
    os.kill(killed[0], signal.SIGKILL)

if __name__ == "__main__":
    killed = []
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with Client(cluster) as client, joblib.parallel_config(backend="dask", wait_for_workers_timeout=300):
            before = set(client.run(os.getpid).values())
            threading.Thread(target=murder, args=(killed,), daemon=True).start()
            grid = gflow.sweep(f, {{"n": range(160)}}, sys.argv[2])
            calls = seen()
            cluster.scheduler.allowed_failures = 0  # give a point up as soon as it has killed one worker
            dead = gflow.sweep(deadly, {{"n": range(12)}})
    here = gflow.sweep(f, {{"n": range(160)}}, jobs=1)
    print(json.dumps({{"same": bool(grid.identical(here)), "killed one of them": killed[0] in before,
                      "calls": len(calls), "points": len({{n for n, _ in calls}}),
                      "errors": int((grid.error != "").sum()),
                      "dead": [n for n in range(12) if dead.error[n] != ""], "why": dead.error[7].item()}}))
"""


@pytest.mark.slow
def test_a_dask_cluster_that_loses_workers_gives_the_same_bits(tmp_path):
    """One killed from outside, and one by the point that it runs."""
    pytest.importorskip("distributed")
    got = json.loads(python(DASK, str(tmp_path / "calls"), str(tmp_path / "store")).splitlines()[-1])
    calls, why = got.pop("calls"), got.pop("why")
    assert got == {"same": True, "killed one of them": True, "points": 160, "errors": 0, "dead": [7]}
    assert 160 <= calls <= 161  # the one in flight in the worker that was killed
    assert why.startswith("KilledWorker: the worker process that ran it died")


def test_partials_and_methods_run_in_workers(store):
    grid = gflow.sweep(functools.partial(product, factor=2.0), AXES, store, 2)
    assert (grid.value == 2.0 * grid.a * grid.b).all()
    assert gflow.sweep(functools.partial(product, factor=3.0), AXES, store, 2).identical(grid) is False
