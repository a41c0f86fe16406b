"""sweep(): a function on a labelled grid of points, on all cores or a cluster; a killed sweep goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Integral
from typing import TYPE_CHECKING, Any

from gflow import _key
from gflow.sweeps.grid import Grid, check_parameters
from gflow.sweeps.run import Run
from gflow.sweeps.store import open_store
from gflow.sweeps.work import Work

if TYPE_CHECKING:
    import xarray


def sweep(
    function: Callable[..., Any],
    axes: Mapping[str, Any],
    store: str | os.PathLike[str] | None = None,
    jobs: int = -1,
    *,
    settings: Mapping[str, Any] | None = None,
    units: Mapping[str, str] | None = None,
    progress: bool = False,
) -> xarray.Dataset:
    """Call a function at every point of a grid.

    Parameters
    ----------
    function : callable
        Called as ``function(**settings, **point)``, with one value of each axis as keyword arguments.  Returns a
        number or a string, an array, a dict of names to these, or an :class:`xarray.DataArray` or
        :class:`xarray.Dataset` (whose dimensions keep their names and coordinates); of the same names, shapes and
        coordinates at every point.
    axes : dict of str to sequence
        Values of each axis: numbers, bools or strings, all different.  An :class:`xarray.DataArray` brings its
        attributes, ``units`` among them, along.  The function gets plain Python numbers, of one type for an axis
        (``[1, 2.5]`` are floats).
    store : path, optional
        Folder that keeps every finished point.  The same call goes on where a killed, interrupted or failed one
        ended, and takes finished points from there; so do sweeps of the same function over other values of the
        same axes, and several at once.  A point belongs to the function with all that it reads (below), the
        settings, and the versions and source of gflow: if one of these changes it is computed anew.  Default:
        nothing is kept.
    jobs : int
        Number of worker processes; -1 is one for each core; 1 runs in this process.  Within
        ``joblib.parallel_config(backend="dask")`` the same call runs on a Dask cluster.  Where its machines do not
        share the folder ``store``, this process writes to it what they return.
    settings : dict of str to object, optional
        Fixed keyword arguments.
    units : dict of str to str, optional
        Units of axes, outputs and coordinates, by name; kept as their attribute ``units``.
    progress : bool
        Show a progress bar.

    Returns
    -------
    xarray.Dataset
        One variable for each output, with the axes as its first dimensions (``value`` if the function returns one
        number or array without a name; further dimensions of plain arrays are ``NAME_0``, ``NAME_1``, …), and a
        variable ``error``: the type and message of the exception at points that failed, ``""`` elsewhere.  Where
        there is an error, numbers are NaN and strings ``""``; integers and bools become floats if, and only if,
        a point is missing.  The attributes hold the cause as text: function, hash of its source, axes, settings,
        versions of gflow and its dependencies and the hash of gflow's source.

    Raises
    ------
    ValueError
        Before anything runs, if an axis is empty, has equal values or values that can be no coordinates; if axes
        and settings do not fit the parameters of the function; if ``store`` cannot be written to; or if, with a
        ``store``, the function reads something that cannot be hashed.  While it runs, if the first 20 points, or
        all, return what is no output.

    Warns
    -----
    UserWarning
        Once, if points failed, were interrupted, or could not be written to ``store`` (they are in the result all
        the same).

    Notes
    -----
    *Failures.*  A point whose function raises or returns what is no output, or whose worker process dies, is
    missing, with the reason in ``error``; it is not kept, and the next call runs it again.  Missing as well are
    points whose outputs have other names, shapes or coordinates than most (``store`` keeps them); if all of the first
    20 differ, the sweep ends there.  Ctrl-C returns what is there.

    *What a point belongs to.*  The function's code, defaults and enclosed values, the globals that it reads, and
    the code of the user's own functions and classes that it uses, however deep; installed packages count by their
    versions.  Files, environment variables, unseeded random numbers and modules whose names it computes do not: let
    a seed be an axis.  What workers import by name is compared with what the calling process has, so that a file edited after
    it was imported cannot mix two versions.

    *Threads.*  BLAS is held at one thread at every point, wherever it runs, so that the bits of a result do not
    depend on ``jobs``.  :func:`gflow.ensemble` inside of a function takes all cores unless told ``jobs=1``.

    *Files.*  ``grid.to_netcdf(path)`` needs no further package, but then writes netCDF 3, which knows no complex
    numbers; with netCDF4 or h5netcdf installed it writes netCDF 4.  The points in ``store`` are pickles, guarded by
    hashes against damage, not against malice: use no store of a stranger.

    Examples
    --------
    >>> def half_time(scale, depth):
    ...     problem = gflow.Problem.factorization([[1.0]])
    ...     model = gflow.DeepLinear((1,) * (depth + 1))
    ...     trajectory = gflow.flow(model, problem, [scale] * depth, np.linspace(0, 100, 1001))
    ...     return np.interp(0.5, trajectory.theta.prod(axis=1), trajectory.t)
    >>> grid = gflow.sweep(half_time, {"scale": [0.1, 0.2, 0.4], "depth": [2, 3]}, units={"value": "time"})
    >>> round(grid.value.sel(depth=3, scale=0.1).item(), 3)
    9.144
    """
    if not callable(function):
        raise ValueError(f"function must be callable; got {function!r:.80}")
    settings = _settings(settings)
    grid = Grid(axes)
    check_parameters(function, grid.names, settings)
    if isinstance(jobs, bool) or not isinstance(jobs, Integral) or jobs == 0:
        raise ValueError(f"jobs must be a whole number >= 1, or -1 for all cores; got {jobs!r}")
    if not isinstance(progress, bool):
        raise ValueError(f"progress must be True or False; got {progress!r}")
    units = _units(units)
    try:
        key, imported = _key.key_of(function, settings)
    except _key.Unkeyable as error:
        if store is not None:
            raise ValueError(
                f"store needs a key of all that the function reads, and {error}. Pass store=None, or make it in "
                "the function"
            ) from error
        key, imported = "", {}
    about = _about(function, settings, grid)
    work = Work(function, settings, key, imported, None if store is None else open_store(store, key, about))
    if jobs != 1:
        work.pack()
    run = Run(work, grid)
    run.go(int(jobs), progress)
    return run.dataset(about, units)


def _settings(settings: Any) -> dict[str, Any]:
    if settings is None:
        return {}
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise ValueError(f"settings must be a dict of names to values; got {settings!r:.80}")
    return dict(settings)


def _units(units: Any) -> dict[str, str]:
    if units is None:
        return {}
    if not isinstance(units, Mapping) or not all(isinstance(x, str) for pair in units.items() for x in pair):
        raise ValueError(f"units must be a dict of names to text; got {units!r:.80}")
    return dict(units)


def _about(function: Any, settings: dict[str, Any], grid: Grid) -> dict[str, str]:
    """The cause of a grid, as text."""
    try:
        made_by = _key.environment()
    except _key.Unkeyable as error:
        made_by = _key.versions() | {"gflow source": f"unknown: {error}"}
    return {
        "function": _key.name_of(function),
        "function_source": _key.source_of(function),
        "axes": json.dumps(
            {
                name: values.astype(str).tolist() if values.dtype.kind in "mM" else values.tolist()
                for name, (values, _) in grid.axes.items()
            }
        ),
        "settings": json.dumps({name: _as_json(value) for name, value in settings.items()}),
        "gflow_version": made_by["gflow"],
        "gflow_source": made_by["gflow source"],
        "versions": json.dumps(made_by),
    }


def _as_json(value: Any) -> Any:
    """A value where it is plain; else what it looks like, with its key."""
    with suppress(TypeError, ValueError):
        json.dumps(value)
        return value
    try:
        return f"{value!r:.200} (key {_key.key_of_values({'': value})})"
    except _key.Unkeyable:
        return f"{value!r:.200}"
