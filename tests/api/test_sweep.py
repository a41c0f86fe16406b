"""Sweeps: arguments, and the labelled grid of outputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray
from sweeping import AXES, product, untouched

import gflow


def test_a_grid_holds_what_the_function_returns_at_each_point():
    grid = gflow.sweep(product, AXES, jobs=1, settings={"factor": 3.0}, units={"a": "1", "value": "1/time"})
    assert grid.value.dims == ("a", "b")
    for a in AXES["a"]:
        for b in AXES["b"]:
            assert grid.value.sel(a=a, b=b) == 3.0 * a * b
    assert (grid.error == "").all()
    assert grid.a.attrs["units"] == "1" and grid.value.attrs["units"] == "1/time"
    assert grid.attrs["function"] == "sweeping:product" and json.loads(grid.attrs["settings"]) == {
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


def test_progress_shows_all_points(capsys):
    gflow.sweep(product, AXES, jobs=1, progress=True)
    assert "100%" in capsys.readouterr().out


def test_units_of_nothing_are_told_of():
    with pytest.warns(UserWarning, match="units has 'alpha', which is neither an axis nor an output"):
        gflow.sweep(product, AXES, jobs=1, units={"alpha": "1"})


# ---- bad input ---------------------------------------------------------------------------------------------


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
