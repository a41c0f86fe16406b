"""Saving and loading: the trajectory and its whole cause, through one file."""

from __future__ import annotations

import functools
import importlib
import linecache
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from cases import CASES

import gflow
from gflow._record import Missing, Recorded

USER_MODULE = """
import numba
import numpy as np


@numba.njit
def gradient(t, theta, data, dims, work, out):
    out[0] = theta[0]{change}


class Decay:
    size = 1
    gradient = gradient

    def kernel_arguments(self, problem):
        return [], [], 0


def observe_first(model, problem, theta):
    return theta[0]
"""


def first(model, problem, theta):
    return theta[0]


def never(t, theta):
    return False


def test_everything_comes_back(case, tmp_path):
    run = gflow.flow(
        case.model, case.problem, case.theta0, np.linspace(0.0, case.end, 5), dense=True,
        observe={"first": first, "loss": "loss"}, stop=never,
    )  # fmt: skip
    path = run.save(tmp_path / "run")
    assert path == tmp_path / "run.npz"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = gflow.load(path)
        np.testing.assert_array_equal(back.t, run.t)
        np.testing.assert_array_equal(back.theta, run.theta)
        np.testing.assert_array_equal(back.loss, run.loss)
        np.testing.assert_array_equal(back.steps, run.steps)
        np.testing.assert_array_equal(back.at(run.t), run.at(run.t))
        np.testing.assert_array_equal(back["first"], run["first"])
        assert back.counts == run.counts and back.versions == run.versions
        assert back.outcome == run.outcome and back.status == run.status
        for mine, theirs in zip(back.gauges, run.gauges, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert back.sensitivity() == run.sensitivity()
        assert back.spec["observe"]["first"] is first and back.spec["stop"] is never
        again = gflow.flow(**back.spec)
    np.testing.assert_array_equal(again.theta, run.theta)
    np.testing.assert_array_equal(again["first"], run["first"])
    estimate, theirs = back.error_estimate(), run.error_estimate()
    np.testing.assert_array_equal(estimate.theta, theirs.theta)


def test_a_loaded_trajectory_can_be_saved_again(tmp_path):
    case = CASES[0]
    run = gflow.flow(case.model, case.problem, case.theta0, 1.0)
    once = gflow.load(run.save(tmp_path / "once.npz"))
    twice = gflow.load(once.save(tmp_path / "twice.npz"))
    np.testing.assert_array_equal(gflow.flow(**twice.spec).theta, run.theta)


def test_descent_comes_back(tmp_path):
    case = CASES[5]
    run = gflow.descend(case.model, case.problem, case.theta0, 0.1, 20, save_every=7, observe="sharpness")
    back = gflow.load(run.save(tmp_path / "gd"))
    np.testing.assert_array_equal(back.theta, run.theta)
    np.testing.assert_array_equal(back["sharpness"], run["sharpness"])
    np.testing.assert_array_equal(gflow.descend(**back.spec).theta, run.theta)
    for trajectory in (run, back):
        with pytest.raises(ValueError, match="error_estimate"):
            trajectory.error_estimate()
        with pytest.raises(ValueError, match="sensitivity"):
            trajectory.sensitivity()


def test_methods_and_steps_come_back(tmp_path):
    """Of a run that changes its method, through a file and through a pickle."""
    steep = gflow.Problem.factorization(np.diag([1.0, 3000.0]))
    run = gflow.flow(gflow.Symmetric(2, 2), steep, [0.1, 0.02, -0.03, 0.2], 30.0, rtol=1e-5)
    assert len(run.methods.t) == len(run.methods.name) > 1
    accepted = run.steps.accepted
    assert accepted.dtype == bool and accepted.sum() == run.counts["accepted"]
    assert accepted.size == run.counts["accepted"] + run.counts["rejected"]
    for back in (gflow.load(run.save(tmp_path / "run")), pickle.loads(pickle.dumps(run))):
        for mine, theirs in zip((*back.steps, *back.methods), (*run.steps, *run.methods), strict=True):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype
        assert back.status == run.status


def test_a_pickle_serves_another_process(tmp_path):
    """Addresses of compiled code would not."""
    case = CASES[0]
    run = gflow.flow(case.model, case.problem, case.theta0, case.end, rtol=1e-6)
    run.loss, run.status, run.sensitivity()  # all that looks kernels up
    (tmp_path / "run.pickle").write_bytes(pickle.dumps(run))
    read = (
        "import pickle, sys; run = pickle.load(open(sys.argv[1], 'rb'));"
        "print(*map(float.hex, run.objective.losses(run.theta)), *map(float.hex, run.objective.eigenvalues(run.end)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", read, str(tmp_path / "run.pickle")], capture_output=True, text=True, check=True
    ).stdout.split()
    here = [*run.objective.losses(run.theta), *run.objective.eigenvalues(run.end)]
    assert said == [float(x).hex() for x in here]


def test_the_name_gets_its_ending_once(tmp_path):
    run = gflow.flow(CASES[0].model, CASES[0].problem, CASES[0].theta0, 1.0)
    assert run.save(tmp_path / "alpha=0.1").name == "alpha=0.1.npz"
    assert run.save(str(tmp_path / "plain.npz")).name == "plain.npz"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alpha=0.1.npz", "plain.npz"]


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    run = gflow.flow(CASES[0].model, CASES[0].problem, CASES[0].theta0, 1.0)
    path = run.save(tmp_path / "run")
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space left"):
        run.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.npz"]


@pytest.mark.parametrize(
    "content", ["", "not a zip file at all", "PK\x03\x04 broken", "npz", "pickle", "format"]
)
def test_what_is_no_trajectory_is_refused(content, tmp_path):
    path = tmp_path / "garbage.npz"
    if content == "npz":
        np.savez(path, a=np.ones(3))
    elif content == "pickle":
        np.savez(path, gflow=np.array([{"a": 1}], dtype=object))
    elif content == "format":
        np.savez(path, gflow=np.array('{"format": 999}'))
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"path must name a trajectory saved by gflow; .*garbage\.npz"):
        gflow.load(path)


def test_a_truncated_file_is_refused(tmp_path):
    run = gflow.flow(CASES[0].model, CASES[0].problem, CASES[0].theta0, np.linspace(0.0, 6.0, 100))
    path = run.save(tmp_path / "run")
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(ValueError, match="cannot be read"):
            gflow.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        gflow.load(tmp_path / "nowhere.npz")


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A function that (re)writes and imports a user's module; None removes it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "users_model_of_a_test.py"

    def write(change):
        sys.modules.pop(path.stem, None)
        path.unlink(missing_ok=True)
        importlib.invalidate_caches()
        if change is None:
            return None
        path.write_text(USER_MODULE.format(change=change))
        linecache.clearcache()
        return importlib.import_module(path.stem)

    yield write
    sys.modules.pop(path.stem, None)


@pytest.fixture
def saved(user, tmp_path):
    module = user("")
    run = gflow.flow(module.Decay(), None, [1.0], [0.0, 1.0], observe=module.observe_first)
    np.testing.assert_allclose(run.theta[:, 0], np.exp(-run.t), rtol=1e-8)
    return run, run.save(tmp_path / "run")


def test_an_unchanged_user_model_is_rerun(user, saved):
    user("")
    run, path = saved
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = gflow.load(path).spec
    np.testing.assert_array_equal(gflow.flow(**spec).theta, run.theta)


@pytest.mark.parametrize("change", [" * 2.0", "  # and a remark"])
def test_a_changed_user_gradient_warns(user, saved, change):
    user(change)
    back = gflow.load(saved[1])
    with pytest.warns(UserWarning, match=r"users_model_of_a_test.*changed"):
        spec = back.spec
    np.testing.assert_array_equal(back.theta, saved[0].theta)
    rate = 2.0 if "2" in change else 1.0
    np.testing.assert_allclose(gflow.flow(**spec).end, np.exp(-rate), rtol=1e-8)


def test_a_vanished_user_model_says_so_when_used(user, saved):
    user(None)
    run, path = saved
    back = gflow.load(path)
    np.testing.assert_array_equal(back.theta, run.theta)
    np.testing.assert_array_equal(back["observe_first"], run["observe_first"])
    assert back.t[-1] == 1.0 and back.counts == run.counts
    with pytest.raises(ValueError, match=r"users_model_of_a_test:Decay.*cannot be had"):
        gflow.flow(**back.spec)
    with pytest.raises(ValueError, match=r"users_model_of_a_test:Decay.*cannot be had"):
        back.sensitivity()


def test_a_lambda_is_refused_only_when_used(tmp_path):
    case = CASES[0]
    run = gflow.flow(
        case.model, case.problem, case.theta0, 1.0, observe={"sum": lambda m, p, theta: theta.sum()}
    )
    back = gflow.load(run.save(tmp_path / "run"))
    np.testing.assert_array_equal(back["sum"], run["sum"])
    with pytest.raises(ValueError, match="lambda"):
        gflow.flow(**back.spec)


class Scale:
    """An observer that is a bound method."""

    def __init__(self, factor):
        self.factor = factor

    def first(self, model, problem, theta):
        return self.factor * theta[0]


class Slotted:
    __slots__ = ("a",)


class Refuses:
    def __init__(self):
        self.lock = threading.Lock()
        self.a = 1


def power(exponent, model, problem, theta):
    return theta[0] ** exponent


def restored(value):
    """A value after a record, and the notes; nothing but JSON and plain arrays in between."""
    record = Recorded.make(value)
    assert all(not array.dtype.hasobject for array in record.arrays.values())
    return record.restore()


@pytest.mark.parametrize(
    "value",
    [
        1 + 2j, np.complex128(1j), {1, 2}, frozenset("ab"), Path("a") / "b", b"bytes", range(3), (1, (2.5, None)),
        {1: "a", (2, 3): [4], "k": {None: 5}}, {"a/b": 1}, np.float32(0.5), np.int64(3), np.bool_(True), np.sin,
        np.linalg.norm, Scale, float("inf"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_come_back_as_they_were(value):
    back, notes = restored({"x": value})
    expected = list(value) if isinstance(value, range) else value
    assert back["x"] == expected and notes == []
    if not isinstance(value, np.generic | range | Path):
        assert type(back["x"]) is type(value)


def test_arrays_whose_names_collide_stay_apart():
    back, _ = restored({"a/b": np.ones(1), "a": {"b": np.zeros(2)}, 1: np.ones(3), "1": np.ones(4)})
    assert [len(v) for v in (back["a/b"], back["a"]["b"], back[1], back["1"])] == [1, 2, 3, 4]


def cycle():
    items = []
    items.append(items)
    return items


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array([{}], dtype=object), "array of objects"),
        (np.ma.masked_array([1.0], [True]), "mask"),
        (Slotted(), "no fields"),
        (threading.Lock(), "lock"),
        (np.random.RandomState(0), "RandomState"),
        (lambda: 0, "<locals>|<lambda>"),
        ((i for i in ()), "generator"),
        (np, "module"),
    ],
)
def test_what_cannot_be_recorded_is_missing_with_a_reason(value, reason):
    back, _ = restored({"x": value, "y": 1})
    assert isinstance(back["x"], Missing) and back["y"] == 1
    with pytest.raises(ValueError, match=rf"(?s)cannot be had.*({reason})|({reason}).*cannot be had"):
        back["x"]()
    again, _ = restored(back)
    assert again["x"] == back["x"]


def test_what_contains_itself_is_missing_and_the_rest_of_an_object_is_not():
    back, _ = restored(cycle())
    assert isinstance(back[0], Missing)
    back, _ = restored(Refuses())
    assert isinstance(back.lock, Missing) and back.a == 1


def test_partial_and_bound_observers_come_back(tmp_path):
    case = CASES[0]
    observers = {"square": functools.partial(power, 2), "scaled": Scale(3.0).first}
    run = gflow.flow(case.model, case.problem, case.theta0, 1.0, observe=observers)
    back = gflow.load(run.save(tmp_path / "run"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = gflow.flow(**back.spec)
    for name in observers:
        np.testing.assert_array_equal(again[name], run[name])
    vanished, _ = restored(functools.partial(lambda m, p, theta: 0.0))
    with pytest.raises(ValueError, match="lambda"):
        vanished(None, None, None)


def test_the_ending_may_be_left_out(tmp_path):
    run = gflow.flow(CASES[0].model, CASES[0].problem, CASES[0].theta0, 1.0)
    run.save(tmp_path / "alpha=0.1")
    np.testing.assert_array_equal(gflow.load(tmp_path / "alpha=0.1").theta, run.theta)


def test_a_spec_with_missing_parts_can_be_recorded_again(user, saved):
    user(None)
    spec = gflow.load(saved[1]).spec
    back, _ = restored(spec)
    assert back["model"] == spec["model"] and isinstance(back["model"], Missing)


USING = """
import numba
import numpy as np

RATE = {rate}
TABLE = np.array([{entry}, 1.0])


@numba.njit
def helper(x):
    return {helper}


@numba.njit
def gradient(t, theta, data, dims, work, out):
    out[0] = RATE * TABLE[0] * helper(theta[0])


class Decay:
    size = 1
    gradient = gradient

    def kernel_arguments(self, problem):
        return [], [], 0
"""
AS_IT_WAS = {"rate": "1.0", "entry": "1.0", "helper": "x"}


@pytest.mark.parametrize("change", [{}, {"rate": "2.0"}, {"entry": "2.0"}, {"helper": "2.0 * x"}], ids=str)
@pytest.mark.parametrize("readable", [True, False], ids=["file", "session"])
def test_a_change_of_what_a_kernel_uses_is_noticed(change, readable, tmp_path, monkeypatch):
    name = "users_module_with_helpers"
    path = tmp_path / f"{name}.py"

    def define(values):
        """The module, from a file or as if typed into a session."""
        module = type(sys)(name)
        source = USING.format(**values)
        if readable:
            path.write_text(source)
            linecache.clearcache()
            module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(source, str(path) if readable else "<stdin>", "exec"), module.__dict__)
        return module

    record = Recorded.make(define(AS_IT_WAS).Decay())
    define({**AS_IT_WAS, **change})
    notes = record.restore()[1]
    assert bool(notes) == bool(change), notes
    assert all("changed" in note for note in notes)


def test_what_was_typed_into_a_session_is_checked_in_another(tmp_path):
    script = (
        "import gflow, warnings\n" + USING + "\n\nimport os\n"
        "if not os.path.exists('run.npz'):\n"
        "    gflow.flow(Decay(), None, [1.0], 1.0).save('run')\n"
        "else:\n"
        "    with warnings.catch_warnings(record=True) as caught:\n"
        "        warnings.simplefilter('always')\n"
        "        gflow.load('run').spec\n"
        "    print('notes:', [str(w.message) for w in caught])\n"
    )
    said = []
    for values in (AS_IT_WAS, AS_IT_WAS, {**AS_IT_WAS, "rate": "2.0"}):
        done = subprocess.run(
            [sys.executable, "-"], input=script.format(**values), cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "notes: []" in said[1]
    assert "__main__:Decay" in said[2] and "changed" in said[2]


def test_what_cannot_be_checked_is_said():
    record = Recorded.make(Scale(1.0))
    blind = Recorded(record.text.replace('"source": {', '"source": {}, "was": {'), record.arrays)
    _, notes = blind.restore()
    assert len(notes) == 1 and "could not be checked" in notes[0]
