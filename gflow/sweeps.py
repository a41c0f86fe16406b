"""sweep(): a function on a labelled grid of points, on all cores or a cluster; a killed sweep goes on where it was."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import joblib
import numpy as np
from joblib._store_backends import FileSystemStoreBackend
from numpy.typing import NDArray

from gflow import _key
from gflow._blas import one_thread
from gflow._memory import refuse_if_too_large
from gflow._progress import Progress

if TYPE_CHECKING:
    import xarray

_WANTED = "a number, an array, a dict of names to these, or an xarray DataArray or Dataset"
_LONGEST_ERROR = 1000  # characters
_PATIENCE = 60.0  # seconds


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
        :class:`xarray.Dataset` (whose dimensions keep their names and coordinates); of the same names and shapes
        at every point.
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
        ``store``, the function reads something that cannot be hashed.  While it runs, as soon as two points
        return outputs of different names or shapes, or one returns what is no output; what is finished is kept in
        ``store``.

    Warns
    -----
    UserWarning
        Once, if points failed, were interrupted, or could not be written to ``store`` (they are in the result all
        the same).

    Notes
    -----
    *Failures.*  A point whose function raises, or whose worker process dies, is missing, with the reason in
    ``error``; it is not kept, and the next call runs it again.  Ctrl-C returns what is there.

    *What a point belongs to.*  The function's code, defaults and enclosed values, the globals that it reads, and
    the code of the user's own functions and classes that it uses, however deep; installed packages count by their
    versions.  Files, environment variables and unseeded random numbers that it reads do not: let a seed be an
    axis.  What workers import by name is compared with what the calling process has, so that a file edited after
    it was imported cannot mix two versions.

    *Threads.*  BLAS is held at one thread at every point, wherever it runs, so that the bits of a result do not
    depend on ``jobs``.  :func:`gflow.ensemble` inside of a function takes all cores unless told ``jobs=1``.

    *Files.*  ``grid.to_netcdf(path)`` needs no further package, but then writes netCDF 3, which knows no complex
    numbers; with netCDF4 or h5netcdf installed it writes netCDF 4.  The points in ``store`` are pickles, guarded by
    checksums against damage, not against malice: use no store of a stranger.

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
    grid = _Grid(axes)
    _check_parameters(function, grid.names, settings)
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
    work = _Work(function, settings, key, imported, None if store is None else _folder(store, key, about))
    if jobs != 1:
        work.pack()
    run = _Run(work, grid)
    run.go(int(jobs), progress)
    return run.dataset(about, units)


# ---- what came in ------------------------------------------------------------------------------------------


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


def _axis(name: Any, given: Any) -> tuple[NDArray[Any], dict[str, Any]]:
    """Values of an axis, and the attributes that came with them."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"axes must have names of keyword arguments; got {name!r}")
    if name == "error":
        raise ValueError("axes must not have the name 'error': the errors of points have it")
    said = f"axes[{name!r}]"
    attributes = dict(given.attrs) if hasattr(given, "attrs") and hasattr(given, "dims") else {}
    if isinstance(given, str | bytes | Mapping | set | frozenset) or not isinstance(given, Iterable):
        raise ValueError(f"{said} must be a sequence of numbers or strings; got {given!r:.80}")
    listed = given if isinstance(given, np.ndarray) else getattr(given, "values", None)
    listed = listed if isinstance(listed, np.ndarray) else list(given)
    try:
        values = np.array(listed)
    except ValueError as error:
        raise ValueError(
            f"{said} must be a sequence of numbers or strings; got {given!r:.80} ({error})"
        ) from error
    if values.ndim != 1:
        raise ValueError(f"{said} must have one dimension; got shape {values.shape}")
    if values.size == 0:
        raise ValueError(f"{said} must have at least one value; got none")
    kinds = {str: str, bool: bool, np.bool_: bool, np.str_: str}
    mixed = isinstance(listed, list) and len({kinds.get(type(value), float) for value in listed}) > 1
    if values.dtype.kind not in "biufUmM" or mixed:
        raise ValueError(
            f"{said} must have values that can be coordinates: all numbers, all bools or all strings; "
            f"got {given!r:.80}. Let it be names, and the function look up what they stand for"
        )
    if (values != values).any():
        raise ValueError(f"{said} must have no NaN: no point could be found by it")
    found, counts = np.unique(values, return_counts=True)
    if found.size < values.size:
        raise ValueError(
            f"{said} must have no value twice; {found[counts > 1][0].item()!r} came more than once"
        )
    return values, attributes


class _Grid:
    """The points, numbered with the last axis fastest."""

    def __init__(self, axes: Any) -> None:
        if not isinstance(axes, Mapping) or not axes:
            raise ValueError(f"axes must be a dict of names to values, with one at least; got {axes!r:.80}")
        self.axes = {name: _axis(name, given) for name, given in axes.items()}
        self.names = list(self.axes)
        self.shape = tuple(values.size for values, _ in self.axes.values())
        self.size = int(np.prod(self.shape, dtype=object))
        refuse_if_too_large("axes", f"{self.size} points", 1000 * self.size)

    def points(self) -> list[dict[str, Any]]:
        columns = [
            list(values) if values.dtype.kind in "mM" else values.tolist() for values, _ in self.axes.values()
        ]
        return [dict(zip(self.names, point, strict=True)) for point in itertools.product(*columns)]


def _check_parameters(function: Any, names: list[str], settings: dict[str, Any]) -> None:
    both = [name for name in names if name in settings]
    if both:
        raise ValueError(f"settings must not have the name of an axis; both have {both[0]!r}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # of some compiled functions
        return
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in by_name]
    for argument, given in (("axes", names), ("settings", settings)):
        unknown = [name for name in given if name not in known]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise ValueError(
                f"{argument} must have names of parameters of the function ({', '.join(known) or 'none'}); "
                f"got {unknown[0]!r}"
            )
    needed = [
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, *{q.kind for q in by_name}) and p.default is p.empty
    ]
    without = [name for name in needed if name not in names and name not in settings]
    if without:
        raise ValueError(
            f"axes, or settings, must have every parameter of the function without a default; {without[0]!r} is in neither"
        )


def _about(function: Any, settings: dict[str, Any], grid: _Grid) -> dict[str, str]:
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


# ---- the store ---------------------------------------------------------------------------------------------


class _Store(FileSystemStoreBackend):
    """joblib's folders, in which a write that fails is an error, and a damaged file is no value."""

    def dump_item(self, call_id: Any, item: Any, verbose: int = 1) -> None:
        """Write under the final name only once all is written (joblib's own swallows what goes wrong)."""
        folder = os.path.join(self.location, *call_id)
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                joblib.dump(item, file)
            os.replace(temporary, os.path.join(folder, "output.pkl"))
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def load_item(self, call_id: Any, **options: Any) -> Any:
        try:
            return super().load_item(call_id, **options)
        except Exception:  # whatever unpickling damaged bytes raises
            return b""

    def store_metadata(self, call_id: Any, metadata: Any) -> None:
        """Nothing: it would be a second file for each point."""

    def get_metadata(self, call_id: Any) -> dict[str, Any]:
        return {}


joblib.register_store_backend("gflow", _Store)


def _memo(point: str, compute: Callable[[], bytes]) -> bytes:
    """What joblib memoises: ``compute`` is called if nothing is kept of the point.

    One function for all sweeps, in a folder for each key: joblib clears all that it has of a function if its source
    differs from what it was, and knows functions by their names alone.
    """
    return compute()


class _Absent(Exception):
    """Nothing is kept of a point."""


def _absent() -> bytes:
    raise _Absent


def _folder(store: Any, key: str, about: dict[str, str]) -> str:
    """The folder of the store for one key; checked by writing to it what it is for."""
    try:
        path = Path(store)
    except TypeError:
        raise ValueError(f"store must be the path of a folder or None; got {store!r:.80}") from None
    if path.is_file():
        raise ValueError(f"store must be a folder; {path} is a file")
    name = re.sub(r"\W+", "_", about["function"].rpartition(":")[2]).strip("_")[:40]
    folder = path.absolute() / f"{name}-{key[:24]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(about, file, indent=1)
            os.replace(temporary, folder / "sweep.json")
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        _memory(str(folder))
    except OSError as error:
        raise ValueError(f"store must be a folder that can be written to; {path}: {error}") from error
    return str(folder)


def _memory(folder: str) -> Any:
    return joblib.Memory(folder, backend="gflow", verbose=0).cache(_memo, ignore=["compute"])


# ---- one point ---------------------------------------------------------------------------------------------


class _BadOutput(Exception):
    """A function returned what is no output."""


class _Refused(Exception):
    """A worker would not compute what the calling process would."""


class _Unfit(Exception):
    """Outputs that fit no grid."""


class _Work:
    """What a worker needs to know; pickled once, and unpickled once in each process.

    The pickle travels as bytes inside of each batch of points: Dask would keep large objects in the memory of one
    worker, and lose them with it.
    """

    def __init__(
        self, function: Any, settings: dict[str, Any], key: str, imported: dict[str, str], folder: str | None
    ) -> None:
        self.call: Any = (function, settings)
        self.key, self.imported, self.folder = key, imported, folder
        self.made_by = _key.environment() if key else {}
        self.home = os.getpid()
        self.packed: bytes | None = None
        self.refusal = ""

    def pack(self) -> None:
        try:
            self.packed = cloudpickle.dumps(self.call)
        except Exception as error:  # whatever its parts raise
            raise ValueError(
                f"function and settings must be such that they can be sent to other processes, for jobs other than 1; "
                f"they cannot be pickled ({type(error).__name__}: {error})"
            ) from error

    def __reduce__(self) -> Any:
        if self.packed is None:
            self.pack()
        return _received, (
            self.packed,
            self.key,
            self.folder,
            self.home,
            json.dumps([self.imported, self.made_by]),
        )

    def unpack(self) -> None:
        """Make the function, and see whether this process would compute what the calling one would."""
        try:
            if self.made_by:
                here = _key.environment()
                other = [name for name, version in self.made_by.items() if here[name] != version]
                if other:
                    self.refusal = (
                        f"its {other[0]} is {here[other[0]]}, in the calling process {self.made_by[other[0]]}"
                    )
                    return
            self.call = pickle.loads(self.packed or b"")
            self.refusal = _key.changed(self.imported)
        except Exception as error:  # whatever a user's modules raise
            self.refusal = f"{type(error).__name__}: {error}"

    @functools.cached_property
    def memory(self) -> Any:
        return None if self.folder is None else _memory(self.folder)

    def _sum(self, point: str, data: bytes) -> bytes:
        return hashlib.sha256(f"{self.key}{point}".encode() + data).digest()

    def kept(self, point: str) -> bytes | None:
        """The outputs kept of a point; None if there are none, or they are damaged."""
        if self.memory is None:
            return None
        try:
            found = self.memory(point, _absent)
        except _Absent:
            return None
        return found[32:] if isinstance(found, bytes) and found[:32] == self._sum(point, found[32:]) else None

    def keep(self, point: str, data: bytes) -> str:
        """Keep the outputs of a point; why they could not be, or ``""``."""
        if self.memory is None:
            return ""
        try:
            self.memory.call(point, lambda: self._sum(point, data) + data)
        except OSError as error:
            return error.strerror or str(error)
        return ""


@functools.lru_cache(maxsize=4)
def _received(packed: bytes, key: str, folder: str | None, home: int, causes: str) -> _Work:
    work = _Work.__new__(_Work)
    work.packed, work.key, work.folder, work.home, work.refusal = packed, key, folder, home, ""
    work.imported, work.made_by = json.loads(causes)
    work.call = None
    return work


_unpacking = threading.Lock()


@contextmanager
def _whole(home: int) -> Iterator[None]:
    """Context in which Ctrl-C ends a point without a result: flows answer it with what they have reached by then.

    Worker processes leave it to the one that called them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if os.getpid() != home:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        yield
        return
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def note(number: int, frame: Any) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            raise KeyboardInterrupt


def _run_point(
    work: _Work, number: int, point: dict[str, Any], key: str, apart: bool
) -> tuple[int, str, Any, str]:
    """Number of the point, what became of it ("value", "error", "bad" or "refused"), that, why it is not kept.

    ``apart``: not in the calling process, since it may be this point that kills the one it runs in.
    """
    if apart and os.getpid() == work.home:
        return number, "error", "not run: a worker process died, and there was no other to run it in", ""
    with _unpacking:
        if work.call is None and not work.refusal:
            work.unpack()
    if work.refusal:
        return number, "refused", work.refusal, ""
    data = work.kept(key)
    if data is None:
        import scipy.linalg  # noqa: F401  (which brings a BLAS of its own, to be held as well)

        function, settings = work.call
        try:
            with _whole(work.home), one_thread():
                data = pickle.dumps(_outputs(function(**settings, **point)), protocol=5)
        except _BadOutput as error:
            return number, "bad", str(error), ""
        except (Exception, SystemExit) as error:
            return number, "error", f"{type(error).__name__}: {error}"[:_LONGEST_ERROR], ""
        return number, "value", data, work.keep(key, data)
    return number, "value", data, ""


def _outputs(value: Any) -> dict[str, Any]:
    """What a function returned, as names to dimensions (None: unnamed), values and attributes, and coordinates."""
    xarray = sys.modules.get("xarray")
    if xarray is not None and isinstance(value, xarray.DataArray):
        value = value.to_dataset(name=value.name or "value")
    if xarray is not None and isinstance(value, xarray.Dataset):
        variables, coordinates = value.data_vars, value.coords
        return {
            "variables": {str(n): (v.dims, _array(n, v.values), dict(v.attrs)) for n, v in variables.items()},
            "coordinates": {
                str(n): (v.dims, _array(n, v.values), dict(v.attrs)) for n, v in coordinates.items()
            },
        }
    named = dict(value) if isinstance(value, Mapping) else {"value": value}
    if not named:
        raise _BadOutput(f"an empty dict; wanted {_WANTED}")
    made: dict[str, Any] = {"variables": {}, "coordinates": {}}
    for name, part in named.items():
        if not isinstance(name, str):
            raise _BadOutput(f"a dict with the key {name!r:.80}; wanted names")
        if xarray is not None and isinstance(part, xarray.DataArray):
            inner = _outputs(part.rename(name))
            for other in made["coordinates"].keys() & inner["coordinates"].keys():
                if not _equal(made["coordinates"][other][1], inner["coordinates"][other][1]):
                    raise _BadOutput(
                        f"outputs of which {name!r} has other coordinates {other!r} than one before it"
                    )
            made["variables"] |= inner["variables"]
            made["coordinates"] |= inner["coordinates"]
        else:
            made["variables"][name] = (None, _array(name, part), {})
    return made


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc" and other.dtype.kind in "fc")


def _array(name: Any, value: Any) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise _BadOutput(f"{value!r:.80} as {name!r} ({error}); wanted {_WANTED}") from error
    if array.dtype.kind not in "biufcU":
        hint = ""
        if type(value).__name__ == "Trajectory":
            hint = " (of a trajectory, such as trajectory.loss, trajectory.end or trajectory['sharpness'])"
        raise _BadOutput(f"a {type(value).__name__}; wanted {_WANTED}{hint}")
    return array


# ---- the sweep ---------------------------------------------------------------------------------------------


class _Run:
    """The points of a sweep and what has become of them."""

    def __init__(self, work: _Work, grid: _Grid) -> None:
        self.work, self.grid = work, grid
        self.points = grid.points()
        self.keys = [_key.key_of_values(point) for point in self.points]
        self.outputs: list[dict[str, Any] | None] = [None] * grid.size
        self.errors: list[str | None] = [None] * grid.size  # None: not run
        self.first: int | None = None
        self.done = self.failed = self.unkept = 0
        self.stopped = ""  # by what, if not all points were run
        # whether this process must keep the points, since the workers have other disks; None: not known yet
        self.writes: bool | None = None
        self.why_unkept = ""

    def at(self, number: int) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.points[number].items())

    def go(self, jobs: int, progress: bool) -> None:
        """Take what the store has, and run the rest."""
        with Progress(progress, "sweep", self.grid.size) as self.shown:
            try:
                rest = self.take_kept(range(self.grid.size))
                self.run(rest, jobs)
            except KeyboardInterrupt:
                self.stopped = "interrupted"
                self.settle()
                with suppress(KeyboardInterrupt):  # what workers have finished and could not hand back
                    self.take_kept([n for n in range(self.grid.size) if self.errors[n] is None])
                if None not in self.errors:  # it struck as the last ones came
                    self.stopped = ""
            except (_Unfit, _Refused) as error:
                raise ValueError(str(error)) from None

    def take_kept(self, numbers: Iterable[int]) -> list[int]:
        """Take points from the store; the rest of them."""
        rest = []
        for number in numbers:
            data = self.work.kept(self.keys[number])
            if data is None:
                rest.append(number)
            else:
                self.take((number, "value", data, ""), fresh=False)
        return rest

    def take(self, outcome: tuple[int, str, Any, str], fresh: bool = True) -> None:
        number, kind, found, why_unkept = outcome
        if kind == "refused":
            raise _Refused(
                f"function must be the same in the workers as here; a worker cannot run it: {found}"
            )
        if kind == "bad":
            raise _Unfit(f"function must return {_WANTED}; at {self.at(number)} it returned {found}")
        if kind == "error":
            self.failed += 1
            self.errors[number] = found or "unknown"
        else:
            if fresh and not why_unkept:
                if self.writes is None:
                    self.writes = self.work.kept(self.keys[number]) is None
                why_unkept = self.work.keep(self.keys[number], found) if self.writes else ""
            outputs = pickle.loads(found)
            self.outputs[number] = outputs
            self.check(number, outputs)
            self.errors[number] = ""
        if why_unkept:
            self.unkept += 1
            self.why_unkept = self.why_unkept or why_unkept
        self.done += 1
        self.shown.update(self.done, f"{self.failed} failed" if self.failed else "")

    def settle(self) -> None:
        """Forget a point that an interrupt struck while it was taken."""
        self.outputs = [
            out if text == "" else None for out, text in zip(self.outputs, self.errors, strict=True)
        ]
        self.first = next((number for number, text in enumerate(self.errors) if text == ""), None)

    def check(self, number: int, outputs: dict[str, Any]) -> None:
        """Compare the names and shapes of a point with those of the first one."""
        if self.first is None:
            import xarray

            named = {
                name: (_dims(name, dims, values), values)
                for name, (dims, values, _) in outputs["variables"].items()
            }
            axes = {str(d) for dims, _ in named.values() for d in dims}
            clash = sorted({*self.grid.names, "error"} & {*named, *outputs["coordinates"], *axes})
            if clash:
                raise _Unfit(
                    f"function must return outputs under names of their own; at {self.at(number)} one is {clash[0]!r}, "
                    "which is that of an axis or of the errors"
                )
            try:
                xarray.Dataset(
                    named, coords={name: part[:2] for name, part in outputs["coordinates"].items()}
                )
            except ValueError as error:
                raise _Unfit(
                    f"function must return outputs that fit into one Dataset; at {self.at(number)}: {error}"
                ) from error
            self.first = number
            return
        first = self.outputs[self.first]
        assert first is not None
        here, there = _form(outputs), _form(first)
        if here != there:
            raise _Unfit(
                f"function must return outputs of the same names and shapes at every point; at {self.at(self.first)} "
                f"it returned {_said(there)}, at {self.at(number)} {_said(here)}"
            )
        for name, (_, values, _) in outputs["coordinates"].items():
            if not _equal(values, first["coordinates"][name][1]):
                raise _Unfit(
                    f"function must return outputs with the same coordinates at every point; those of {name!r} differ "
                    f"between {self.at(self.first)} and {self.at(number)}"
                )

    def run(self, numbers: list[int], jobs: int) -> None:
        """Run points; those in flight when a worker process dies again, one by one, to find the one that it is."""
        suspects: list[int] = []
        renewed = False
        rest = list(numbers)
        while rest:
            sent: set[int] = set()
            back: set[int] = set()
            try:
                self.run_at_once(rest, jobs, sent, back, apart=bool(suspects))
            except _Refused:
                if renewed or not self.local:
                    raise
                renewed, sent = True, back
                _new_workers()
            except Exception as error:
                if not _is_death(error):
                    return self.stop(error)
                suspects += sorted(sent - back)
            rest = [number for number in rest if number not in sent]
        for number in suspects:
            try:
                self.run_at_once([number], 2, set(), set(), apart=True)
            except Exception as error:
                if not _is_death(error):
                    return self.stop(error)
                text = "the worker process that ran it died (out of memory, or a crash of compiled code)"
                self.take((number, "error", f"{type(error).__name__}: {text}", ""))

    def stop(self, error: Exception) -> None:
        """End with what there is after an error that no point raised, such as the loss of a whole cluster."""
        if self.done == 0 or isinstance(error, _Unfit | _Refused):
            raise error
        self.stopped = f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]

    def run_at_once(
        self, numbers: list[int], jobs: int, sent: set[int], back: set[int], apart: bool = False
    ) -> None:
        if apart:
            _wait_for_workers()

        def calls() -> Iterator[Any]:
            for number in numbers:
                sent.add(number)
                yield joblib.delayed(_run_point)(
                    self.work, number, self.points[number], self.keys[number], apart
                )

        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        self.local = type(getattr(parallel, "_backend", None)).__name__ == "LokyBackend"
        _tell_of_lost_batches(parallel)
        outcomes = parallel(calls())
        try:
            for outcome in outcomes:
                self.take(outcome)
                back.add(outcome[0])
        finally:
            with warnings.catch_warnings():  # joblib's, of results that nobody took
                warnings.simplefilter("ignore")
                outcomes.close()

    def dataset(self, about: dict[str, str], units: dict[str, str]) -> xarray.Dataset:
        """The result, with one warning if something is missing or was not kept."""
        import xarray

        self.settle()
        from_axes = {
            name: (name, values, _with_unit(attributes, name, units))
            for name, (values, attributes) in self.grid.axes.items()
        }
        errors = np.empty(self.grid.size, dtype=object)
        errors[:] = [f"not run: {self.stopped}" if text is None else text for text in self.errors]
        variables: dict[str, Any] = {}
        coordinates: dict[str, Any] = {}
        if self.first is not None and (first := self.outputs[self.first]) is not None:
            for name, (dims, values, attributes) in first["variables"].items():
                block = self.block(name).reshape(*self.grid.shape, *values.shape)
                variables[name] = (
                    (*self.grid.names, *_dims(name, dims, values)),
                    block,
                    _with_unit(attributes, name, units),
                )
            coordinates = {
                name: (dims, values, _with_unit(attributes, name, units))
                for name, (dims, values, attributes) in first["coordinates"].items()
            }
        variables["error"] = (tuple(self.grid.names), errors.reshape(self.grid.shape), {})
        notes = self.notes()
        unused = [name for name in units if name not in {*from_axes, *variables, *coordinates}]
        if unused:
            notes.append(f"units has {unused[0]!r}, which is neither an axis nor an output")
        if notes:
            warnings.warn("; ".join(notes) + ".", stacklevel=3)
            about = about | {"notes": "; ".join(notes)}
        return xarray.Dataset(variables, coords={**from_axes, **coordinates}, attrs=about)

    def notes(self) -> list[str]:
        notes, size = [], self.grid.size
        if self.failed:
            which = next(number for number, text in enumerate(self.errors) if text)
            notes.append(
                f"{self.failed} of {size} points failed and are missing, the first at {self.at(which)}: "
                f"{self.errors[which]} (see the variable error; the same call runs them again)"
            )
        if self.stopped:
            notes.append(
                f"{self.stopped}: {self.errors.count(None)} of {size} points were not run and are missing"
                + ("" if self.work.folder is None else "; the same call goes on")
            )
        if self.unkept:
            notes.append(
                f"{self.unkept} of {size} points could not be written to store ({self.why_unkept}): they are in this "
                "result only"
            )
        return notes

    def block(self, name: str) -> NDArray[Any]:
        """An output at all points (points, ...); missing ones are NaN, or empty text."""
        found = [None if out is None else out["variables"][name][1] for out in self.outputs]
        there = [array for array in found if array is not None]
        dtype: Any = np.result_type(*{array.dtype for array in there})
        whole = len(there) == len(found)
        if not whole and dtype.kind in "biu":
            if dtype.kind != "b" and any(
                np.abs(a.astype(float)).max(initial=0) >= 2**53 for a in map(np.atleast_1d, there)
            ):
                warnings.warn(
                    f"{name!r} has whole numbers above 2^53, rounded to floats since points are missing.",
                    stacklevel=4,
                )
            dtype = np.dtype(np.float64)
        block = np.full(
            (len(found), *there[0].shape), "" if dtype.kind == "U" else np.nan if not whole else 0, dtype
        )
        for number, array in enumerate(found):
            if array is not None:
                block[number] = array
        return block


def _with_unit(attributes: dict[str, Any], name: str, units: dict[str, str]) -> dict[str, Any]:
    return attributes | ({"units": units[name]} if name in units else {})


def _dims(name: str, dims: Any, values: NDArray[Any]) -> list[Any]:
    return [f"{name}_{i}" for i in range(values.ndim)] if dims is None else list(dims)


def _form(outputs: dict[str, Any]) -> dict[str, Any]:
    """Names, dimensions, shapes and kinds of outputs."""
    return {
        f"{name}": (dims, values.shape, "text" if values.dtype.kind == "U" else "numbers")
        for part in outputs.values()
        for name, (dims, values, _) in part.items()
    }


def _said(form: dict[str, Any]) -> str:
    return ", ".join(f"{name} {shape} of {kind}" for name, (_, shape, kind) in form.items())


def _wait_for_workers() -> None:
    """Wait until a cluster of which workers died has two: with one, joblib would run points in this process."""
    deadline = time.monotonic() + _PATIENCE
    while joblib.effective_n_jobs(2) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)


def _new_workers() -> None:
    """Stop joblib's idle workers: they may have imported what has been edited, and imported anew here, since."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor(reuse=True).shutdown(wait=True)


def _is_death(error: Exception) -> bool:
    """Whether an exception says that a worker process died."""
    return isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker"


def _tell_of_lost_batches(parallel: Any) -> None:
    """Let joblib hear of batches that Dask gave up, as it does if their workers died too often.

    joblib's Dask backend keeps such an exception to itself, and waits for the batch for ever.
    """
    backend: Any = getattr(parallel, "_backend", None)
    if type(backend).__name__ != "DaskDistributedBackend":
        return
    submit = backend.submit

    def submit_and_tell(batch: Any, callback: Any = None) -> Any:
        future = submit(batch, callback)
        if callback is not None:
            future.add_done_callback(lambda f: None if f.exception() is None else callback(f.exception()))
        return future

    backend.submit = submit_and_tell
