"""Points of a sweep that fail, or fit no grid with the others: they are missing, and the others are there."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal

import numpy as np
import pytest
import xarray
from sweeping import AXES, count, lines, points, product

import gflow
from gflow.sweeps import run


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


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_swallowed_interrupt_ends_the_sweep_at_the_next_point(monkeypatch, jobs):
    """As in a callback of compiled code, which prints what is raised in it and goes on."""
    take, taken = run.Run.take, []

    def swallowing(self, outcome):
        taken.append(outcome.number)
        if len(taken) == 3:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        take(self, outcome)

    monkeypatch.setattr(run.Run, "take", swallowing)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.warns(UserWarning, match="not run and are missing"):
            grid = gflow.sweep(product, {"a": [0.5, 1.0, 2.0], "b": range(100)}, jobs=jobs)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted" in grid.attrs["notes"] and len(taken) == 3
    assert int((grid.error == "not run: interrupted").sum()) == 297


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


def test_whole_numbers_that_floats_cannot_hold_are_told_of():
    with pytest.warns(UserWarning, match="1 of 2 points failed .* 'value' has whole numbers above 2"):
        gflow.sweep(lambda a: 2**60 + 1 if a else 1 // a, {"a": [0, 1]}, jobs=1)
    with pytest.warns(UserWarning, match="'value' has whole numbers above 2.*others are no whole numbers"):
        gflow.sweep(lambda a: 2**60 + 1 if a else 0.5, {"a": [0, 1]}, jobs=1)


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
