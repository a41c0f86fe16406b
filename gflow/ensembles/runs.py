"""What all kinds of runs have in common, and the threads that share them."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gflow._progress import Progress
from gflow._run import Array, CallbackError, Interrupts, Watch, blas_pays, hold_blas
from gflow.ensembles.result import Ensemble
from gflow.kernels import ensembles
from gflow.objective import Objective
from gflow.trajectory import Status

_STRETCH_SECONDS = 0.1


class Worker(Protocol):
    """What one thread goes on with: some of the runs, with buffers of its own."""

    @property
    def steps(self) -> int: ...

    def begin(self, first: int, end: int) -> None:
        """Take the runs from ``first`` to before ``end``; no runs at all say that no more will come."""
        ...

    def advance(self, budget: int) -> bool:
        """Make about so many steps; whether the runs are done."""
        ...

    def leave(self) -> None:
        """Keep what there is of the run that is under way."""


class Runs(ABC):
    """What flows and descents have in common."""

    verb: str
    to_limit = False
    outcomes: dict[int, Status]

    def __init__(self, objective: Objective, thetas: Array, observers: dict[str, Callable[..., Any]]) -> None:
        self.objective, self.thetas = objective, thetas
        objective.gradient(
            thetas[0]
        )  # what is wrong with a user's kernel or observer shows before anything runs
        self.watch = Watch(objective, observers, None, thetas[0])
        self.outcomes = {}
        cost = objective.data.size + objective.work.size + 8 * objective.size + 100
        self.first_budget = int(min(max(2e7 / cost, 1), 10_000))

    @property
    @abstractmethod
    def codes(self) -> NDArray[np.int64]:
        """Why each run ended (R,)."""

    @abstractmethod
    def worker(self, share: int) -> Worker:
        """What one thread goes on with, and the number of runs that fall to a thread."""

    @abstractmethod
    def result(self, interrupted: bool, spec: dict[str, Any]) -> Ensemble:
        """What has become of the runs."""

    def observed(self, theta: Array, saved: NDArray[np.int64], names: NDArray[Any]) -> dict[str, Array]:
        """The observables of all runs; a callable that raises makes its run one that failed."""
        values: dict[str, list[Array]] = {name: [] for name in self.watch.seen}
        with suppress(KeyboardInterrupt):  # the rest stays unobserved
            for r in range(len(theta)) if values else ():
                self.watch.seen = {name: [] for name in values}
                try:
                    self.watch.observe(theta[r, : saved[r]])
                except CallbackError as error:
                    names[r] = "failed"
                    self.outcomes[r] = Status("failed", f"{error} raised {error.__cause__!r}.")
                for name, seen in self.watch.arrays(theta.shape[1]).items():
                    values[name].append(seen)
        self.watch.seen = {name: [] for name in values}
        blank = self.watch.arrays(theta.shape[1])
        return {
            name: _stack(seen + [blank[name]] * (len(theta) - len(seen))) for name, seen in values.items()
        }


def _stack(values: list[Array]) -> Array:
    if len({value.shape for value in values}) == 1 and all(value.dtype != object for value in values):
        return np.stack(values)
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def drive(runs: Runs, jobs: int, progress: bool) -> bool:
    """Share the runs among threads until all are done; whether an interrupt has ended that."""
    number = len(runs.thetas)
    threads = min(jobs, number) if not blas_pays(runs.objective) else 1
    block = max(1, min(number // (8 * threads), 1024))
    firsts, lock, stopping = iter(range(0, number, block)), threading.Lock(), threading.Event()

    def work() -> None:
        worker, budget = runs.worker(-(-number // threads)), runs.first_budget
        while True:
            with lock:
                first = next(firsts, None)
            last = first is None
            if first is None:
                first = number
            worker.begin(first, min(first + block, number))
            while True:
                if stopping.is_set():
                    return worker.leave()
                began, before = time.perf_counter(), worker.steps
                if worker.advance(budget):
                    break
                if worker.steps > before:
                    pace = (worker.steps - before) / max(time.perf_counter() - began, 1e-6)
                    budget = max(1, int(_STRETCH_SECONDS * pace))
            if last:
                return

    interrupts, came = Interrupts(), False
    with (
        interrupts,
        hold_blas(runs.objective, runs.to_limit),
        Progress(progress, runs.verb, float(number)) as shown,
        ThreadPoolExecutor(threads) as pool,
    ):
        left = {pool.submit(work) for _ in range(threads)}
        while left:
            try:
                done, left = wait(left, timeout=_STRETCH_SECONDS, return_when=FIRST_EXCEPTION)
                for error in (one.exception() for one in done):
                    if error is not None:
                        stopping.set()
                        raise error
                interrupts.check()
                if progress:
                    ended = int(np.count_nonzero(runs.codes != ensembles.UNFINISHED))
                    shown.update(float(ended), f"{ended} of {number} runs")
            except KeyboardInterrupt:  # the threads end after the stretch that is under way
                came, interrupts.came = True, False
                stopping.set()
    return came
