"""The points of a sweep on their way through joblib, whatever becomes of them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np

from gflow import _key
from gflow._progress import Progress
from gflow.sweeps.grid import Grid
from gflow.sweeps.outputs import WANTED, Outputs, block
from gflow.sweeps.work import LONGEST_ERROR, Outcome, Work, noting_interrupts, run_point

if TYPE_CHECKING:
    import xarray

#: Points after which a sweep ends if all were bad, or no two of them alike: it will not be better at the others.
_ENOUGH = 20


class _End(Exception):
    """The sweep cannot go on; the text says why."""


class _Refused(_End):
    """A worker would not compute what the calling process would."""


class Run:
    """The points of a sweep and what has become of them."""

    def __init__(self, work: Work, grid: Grid) -> None:
        self.work, self.grid = work, grid
        self.points = grid.points()
        self.keys = [_key.key_of_values(point) for point in self.points]
        self.results: list[Outputs | str | None] = [None] * grid.size  # outputs or an error; None: not run
        self.bad: dict[int, str] = {}  # points that returned no output of a grid, and what instead
        self.forms: dict[Hashable, str] = {}  # of the outputs that came, and why they make no Dataset
        self.alike = False  # whether any two points had the same form
        self.unkept: dict[int, str] = {}  # points that are not in the store, and why
        self.done = self.failed = 0  # as progress shows them
        self.stopped = ""  # by what, if not all points were run

    def at(self, number: int) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.points[number].items())

    def go(self, jobs: int, progress: bool) -> None:
        """Take what the store has, and run the rest."""
        with Progress(progress, "sweep", self.grid.size) as self.shown, noting_interrupts() as self.came:
            try:
                self.run(self.take_kept(range(self.grid.size)), jobs)
            except KeyboardInterrupt:
                self.stopped = "interrupted"
                with suppress(KeyboardInterrupt, _End):  # what workers have finished and could not hand back
                    self.take_kept([n for n, result in enumerate(self.results) if result is None])
            except Exception as error:  # no point's, but such as the loss of a whole cluster
                ours = isinstance(error, _End)
                if not any(isinstance(result, Outputs) for result in self.results):
                    if ours:
                        raise ValueError(str(error)) from None
                    raise
                self.stopped = ("" if ours else f"{type(error).__name__}: ") + str(error)[:LONGEST_ERROR]
        if None not in self.results:  # it struck as the last ones came
            self.stopped = ""

    def take_kept(self, numbers: Iterable[int]) -> list[int]:
        """Take points from the store; the rest of them."""
        rest = []
        for number in numbers:
            data = self.work.store.get(self.keys[number]) if self.work.store else None
            if data is None:
                rest.append(number)
            else:
                self.take(Outcome(number, "value", data))
        return rest

    def take(self, outcome: Outcome) -> None:
        """Note what became of a point; its result at last, so that an interrupt leaves no half of it."""
        number, kind, found, unkept = outcome
        if kind == "refused":
            raise _Refused(
                f"function must be the same in the workers as here; a worker cannot run it: {found}"
            )
        result: Outputs | str = found
        if kind == "value":
            store = self.work.store
            if store and (unkept or not store.has(self.keys[number])):  # the worker has another disk
                unkept = store.put(self.keys[number], found)
            if unkept:
                self.unkept[number] = unkept
            outputs: Outputs = pickle.loads(found)
            form = outputs.form()
            self.alike |= form in self.forms
            if form not in self.forms:
                self.forms[form] = outputs.misfit({*self.grid.names, "error"})
            result = outputs
            if self.forms[form]:
                kind, found = "bad", self.forms[form]
        if kind == "bad":
            self.bad[number] = found
            result = f"ValueError: function must return {WANTED}; it returned {found}"
        self.failed += isinstance(result, str)
        self.done += 1
        self.results[number] = result
        self.shown.update(self.done, f"{self.failed} failed" if self.failed else "")
        self.despair()

    def despair(self) -> None:
        """End a sweep if all points were bad, or no two alike: it will not be better at the others."""
        if len(self.bad) == min(_ENOUGH, self.grid.size) == self.done:
            which, found = min(self.bad.items())
            raise _End(f"function must return {WANTED}; at {self.at(which)} it returned {found}")
        if not self.alike and list(self.forms.values()).count("") == _ENOUGH:
            one, other, *_ = [n for n, result in enumerate(self.results) if isinstance(result, Outputs)]
            raise _End(f"{self.unlike(one, other)}; those of {_ENOUGH} points were all different")

    def unlike(self, one: int, other: int) -> str:
        """What is wrong with two points whose outputs cannot stand in one grid."""
        here, there = self.results[one], self.results[other]
        assert isinstance(here, Outputs) and isinstance(there, Outputs)
        what = "names and shapes" if here.said() != there.said() else "coordinates"
        return (
            f"function must return outputs of the same {what} at every point; at {self.at(one)} it returned "
            f"{here.told()}, at {self.at(other)} {there.told()}"
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
                self.run_at_once(rest, jobs, sent, back)
            except _Refused:
                if renewed or not self.local:
                    raise
                renewed, sent = True, back
                _new_workers()
            except Exception as error:
                if not _is_death(error):
                    raise
                suspects += sorted(sent - back)
            rest = [number for number in rest if number not in sent]
        for last in (False, True):  # a second time, since a worker may have died of something else
            for number in [number for number in suspects if self.results[number] is None]:
                try:
                    self.run_at_once([number], 2, set(), set())
                except Exception as error:
                    if not _is_death(error):
                        raise
                    if last:
                        text = (
                            "the worker process that ran it died (out of memory, or a crash of compiled code)"
                        )
                        self.take(Outcome(number, "error", f"{type(error).__name__}: {text}"))

    def run_at_once(self, numbers: list[int], jobs: int, sent: set[int], back: set[int]) -> None:
        def calls() -> Iterator[Any]:
            for number in numbers:
                sent.add(number)
                yield joblib.delayed(run_point)(self.work, number, self.points[number], self.keys[number])

        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        self.local = type(getattr(parallel, "_backend", None)).__name__ == "LokyBackend"
        _mend_dask(parallel)
        outcomes = parallel(calls())
        try:
            for outcome in outcomes:
                self.take(outcome)
                back.add(outcome.number)
                if self.came:
                    raise self.came[0]
        finally:
            with warnings.catch_warnings():  # joblib's, of results that nobody took
                warnings.simplefilter("ignore")
                outcomes.close()

    def fitting(self) -> list[Outputs | None]:
        """Outputs of the form that most points have, the first of these if there are several; others are errors."""
        groups: dict[Hashable, list[int]] = {}
        for number, result in enumerate(self.results):
            if isinstance(result, Outputs):
                groups.setdefault(result.form(), []).append(number)
        most = max(groups.values(), key=len, default=[])
        for numbers in groups.values():
            for number in numbers if numbers is not most else ():
                self.results[number] = f"ValueError: {self.unlike(number, most[0])}"[:LONGEST_ERROR]
        return [result if isinstance(result, Outputs) else None for result in self.results]

    def dataset(self, about: dict[str, str], units: dict[str, str]) -> xarray.Dataset:
        """The result, with one warning if something is missing or was not kept."""
        import xarray

        found = self.fitting()
        errors = np.empty(self.grid.size, dtype=object)
        errors[:] = [
            f"not run: {self.stopped}" if result is None else result if isinstance(result, str) else ""
            for result in self.results
        ]
        notes = self.notes(errors)
        dims = tuple(self.grid.names)
        variables: dict[str, Any] = {}
        coordinates: dict[str, Any] = {
            name: (name, values, attributes) for name, (values, attributes) in self.grid.axes.items()
        }
        first = next((outputs for outputs in found if outputs is not None), None)
        if first is not None:
            for name, part in first.variables.items():
                values, lost = block([out and out.variables[name].values for out in found])
                if lost:
                    notes.append(f"{name!r} has {lost}")
                shape = (*self.grid.shape, *part.values.shape)
                variables[name] = (dims + part.dims, values.reshape(shape), part.attributes)
            coordinates |= {name: tuple(part) for name, part in first.coordinates.items()}
        variables["error"] = (dims, errors.reshape(self.grid.shape), {})
        for made in (variables, coordinates):
            for name in made.keys() & units.keys():
                made[name] = (*made[name][:2], made[name][2] | {"units": units[name]})
        unused = [name for name in units if name not in {*variables, *coordinates}]
        if unused:
            notes.append(f"units has {unused[0]!r}, which is neither an axis nor an output")
        if notes:
            warnings.warn("; ".join(notes) + ".", stacklevel=3)
            about = about | {"notes": "; ".join(notes)}
        return xarray.Dataset(variables, coords=coordinates, attrs=about)

    def notes(self, errors: Any) -> list[str]:
        notes, size = [], self.grid.size
        failed = [number for number, result in enumerate(self.results) if isinstance(result, str)]
        if failed:
            notes.append(
                f"{len(failed)} of {size} points failed and are missing, the first at {self.at(failed[0])}: "
                f"{errors[failed[0]]} (see the variable error)"
            )
        if self.stopped:
            notes.append(
                f"{self.stopped}: {self.results.count(None)} of {size} points were not run and are missing"
                + ("; the same call goes on" if self.work.store else "")
            )
        if self.unkept:
            why = next(iter(self.unkept.values()))
            notes.append(
                f"{len(self.unkept)} of {size} points could not be written to store ({why}): they are in this "
                "result only"
            )
        return notes


def _new_workers() -> None:
    """Stop joblib's idle workers: they may have imported what has been edited, and imported anew here, since."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor(reuse=True).shutdown(wait=True)


def _is_death(error: Exception) -> bool:
    """Whether an exception says that a worker process died."""
    return isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker"


def _mend_dask(parallel: Any) -> None:
    """Mend two things in joblib's Dask backend, if it is that.

    It runs in the calling process what meets a cluster of a single worker, as others restart, and what kills that one
    would kill the caller.  And it keeps to itself the exception of a batch that Dask gave up, as it does if its workers
    died too often, and waits for it for ever.
    """
    backend: Any = getattr(parallel, "_backend", None)
    if type(backend).__name__ != "DaskDistributedBackend" or "submit" in vars(backend):
        return
    submit, effective_n_jobs = backend.submit, backend.effective_n_jobs

    def submit_and_tell(batch: Any, callback: Any = None) -> Any:
        future = submit(batch, callback)
        if callback is not None:
            future.add_done_callback(lambda f: None if f.exception() is None else callback(f.exception()))
        return future

    backend.submit = submit_and_tell
    backend.effective_n_jobs = lambda n_jobs: max(2, effective_n_jobs(n_jobs))
