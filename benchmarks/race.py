"""A race: every contestant over a sweep of tolerances, in processes that are asked in turn.

Each package has a process of its own, which waits while the others run: no thread pool, allocator or setting of
one disturbs another, and one that has not finished by its cap can be ended.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

_SAMPLE_SECONDS = 0.02
# A processor that has stood idle, while another one worked, is slow for so long.
_WAKE_SECONDS = 0.3
# A call so long is hardly touched by that.
_LONG_SECONDS = 1.0
_SETUP_SECONDS = 300.0
#: Packages that compile in the first call of a contestant, and the seconds that it is allowed more for that.
_COMPILE_SECONDS = {"gflow": 600.0, "numbalsoda": 120.0, "diffrax": 120.0}
#: A peer's first call is at this tolerance: what has to be compiled is the same, and the run is short.
_LOOSE = 1e-2
#: The error that finalists are chosen by, and their number.
TARGET, FINALISTS = 1e-6, 3


class TimeUp(Exception):
    """A contestant has not finished by its cap."""


class Worker:
    """The process of one package on one task."""

    def __init__(self, group: str, task: str, processor_time: bool, module: str) -> None:
        self.group, self.task, self.processor_time, self.module = group, task, processor_time, module
        self.names: list[str] = []
        self.warm: set[str] = set()
        self._start()

    def _start(self) -> None:
        self.warm.clear()
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")  # the fastest for everybody at these sizes; XLA has its own pool
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=_serve,
            args=(other, self.module, self.group, self.task, self.processor_time),
            daemon=True,
        )
        self.process.start()
        other.close()
        answer = self._answer(_SETUP_SECONDS)
        if isinstance(answer, str):
            raise ImportError(answer)
        self.names = answer

    def _answer(self, seconds: float) -> Any:
        if not self.pipe.poll(seconds):
            raise TimeUp
        return self.pipe.recv()

    def run(
        self, name: str, rtol: float, repeats: int, cap: float, wake: bool = False
    ) -> tuple[float, float, Any]:
        """Seconds per call, processor seconds, what the last call returned; TimeUp (and a new process) past the cap.

        ``wake``: another process has worked before this one.
        """
        if name not in self.warm and self.group in _COMPILE_SECONDS:
            self.first_call(name, rtol, cap)
        return self._run(name, rtol, repeats, cap, wake)

    def _run(
        self, name: str, rtol: float, repeats: int, cap: float, wake: bool = False
    ) -> tuple[float, float, Any]:
        try:
            self.pipe.send((name, rtol, repeats, _WAKE_SECONDS if wake else 0.0))
            return self._answer(cap * max(1, repeats))
        except (TimeUp, EOFError, OSError):  # or it died
            self.close()
            self._start()
            raise TimeUp from None

    def first_call(self, name: str, rtol: float, cap: float) -> float:
        """Seconds of a contestant's first call, with what it compiles."""
        first = rtol if self.group == "gflow" else max(rtol, _LOOSE)
        seconds = self._run(name, first, 1, cap + _COMPILE_SECONDS.get(self.group, 0.0))[0]
        self.warm.add(name)
        return seconds

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, module: str, group: str, task: str, processor_time: bool) -> None:
    found = importlib.import_module(module)
    package, make = found.GROUPS[group]
    try:
        contestants = make(found.TASKS[task]())
    except ImportError:
        pipe.send(f"{package} is not installed")
        return
    clock = time.process_time if processor_time else time.perf_counter
    pipe.send(list(contestants))
    while True:
        name, rtol, repeats, wake = pipe.recv()
        states: Any = None
        with suppress(Exception):
            end = time.perf_counter() + wake
            while time.perf_counter() < end:
                contestants[name](rtol)
            for _ in range(repeats // 4):
                contestants[name](rtol)
        start, start_processor = clock(), time.process_time()
        try:
            for _ in range(repeats):
                states = contestants[name](rtol)
        except Exception as error:
            states = repr(error)[:200]
        seconds, processor = clock() - start, time.process_time() - start_processor
        pipe.send((seconds / repeats, processor / repeats, states))


@dataclass
class Point:
    """One contestant at one tolerance."""

    rtol: float
    error: float
    seconds: float
    samples: int
    processor_seconds: float = math.nan
    capped: bool = False
    note: str = ""


@dataclass
class Curve:
    """One contestant: its first call (with its compilation) and its points, from loose to tight."""

    name: str
    group: str
    first_call: float = math.nan
    points: list[Point] = field(default_factory=list)

    def seconds_at(self, error: float, clock: str = "seconds") -> float | None:
        """Time to an error: log-log interpolation between neighbours that enclose it, or the cheapest point below.

        None if no point is as exact.
        """
        good = sorted(
            (p.error, getattr(p, clock)) for p in self.points if not p.capped and math.isfinite(p.error)
        )
        best = min((s for e, s in good if e <= error), default=None)
        if best is None:
            return None
        for (e0, s0), (e1, s1) in zip(good, good[1:], strict=False):
            if 0 < e0 <= error < e1:
                share = math.log(error / e0) / math.log(e1 / e0)
                best = min(best, math.exp((1 - share) * math.log(s0) + share * math.log(s1)))
        return best

    def promise(self, rtols: Sequence[float]) -> tuple[float, float]:
        """Where its last two points lead: seconds to ``TARGET``, and the loosest untried tolerance that should reach it.

        A single point, or two that do not fall, are followed as if the error went with the tolerance, and the
        seconds with its inverse; of a contestant without any, nothing is expected.
        """
        good = [p for p in self.points if not p.capped and 0 < p.error < math.inf]
        if not good:
            return math.inf, rtols[0]
        last, order, cost = good[-1], 1.0, -1.0
        if len(good) > 1 and last.error < good[-2].error:
            stretch = math.log(last.rtol / good[-2].rtol)
            order = math.log(last.error / good[-2].error) / stretch
            cost = math.log(last.seconds / good[-2].seconds) / stretch
        share = (TARGET / last.error) ** (1.0 / order)
        untried = [r for r in rtols if r < last.rtol] or [last.rtol]
        rtol = next((r for r in untried if r <= 1.01 * share * last.rtol), untried[-1])
        return last.seconds * share**cost, rtol


def race(
    task: Any, groups: Iterable[str], reference: np.ndarray, cap: float, rounds: int, say: Any = print,
    only: str | None = None, processor_time: bool = False, heat: float | None = None, module: str = "peers",
) -> tuple[list[Curve], dict[str, str]]:  # fmt: skip
    """Curves of all contestants, and why packages are absent.

    First each contestant goes down the tolerances alone, until it takes longer than the cap; what remains are
    then timed in turn, A B C A B C, for ``rounds`` rounds (fewer where a call is long).  ``processor_time`` counts
    that of a package's process, all threads; the cap stays the wall's.  ``module`` has the ``TASKS`` and the ``GROUPS``.

    With ``heat``, where few will reach ``TARGET``, a peer has that many seconds for all its tolerances; the
    ``FINALISTS`` whose points lead to it soonest are then given the cap, once, at the tolerance that should reach it.
    """
    workers, absent, curves = {}, {}, []
    for group in groups:
        try:
            workers[group] = Worker(group, task.name, processor_time, module)
        except ImportError as error:
            absent[group] = str(error)
        except TimeUp:
            absent[group] = f"did not set up within {_SETUP_SECONDS:g} s"
        except EOFError:
            absent[group] = "its process ended while it set up"
    jobs: list[tuple[Worker, Curve, Point, int]] = []
    samples: list[list[tuple[float, float]]] = []
    for group, worker in workers.items():
        for name in [n for n in worker.names if only is None or only in n or n == "gflow"]:
            curve = Curve(name, group)
            curves.append(curve)
            left = cap if heat is None or group == "gflow" else heat
            for rtol in task.rtols:
                point = _pilot(worker, curve, task, rtol, reference, left)
                curve.points.append(point)
                if point.capped:
                    break  # a tighter one takes longer
                if left < cap:
                    left = max(left - point.seconds, 1.0)
            say(f"  {name}: " + ", ".join(_text(p) for p in curve.points))
    if heat is not None:
        _final(workers, curves, task, reference, cap, say)
    for curve in curves:
        for point in (p for p in curve.points if not p.capped):
            repeats = max(1, round(_SAMPLE_SECONDS / max(point.seconds, 1e-5)))
            jobs.append((workers[curve.group], curve, point, repeats))
            samples.append([(point.seconds, point.processor_seconds)] if point.seconds > 1.0 else [])
    for _ in range(rounds):
        awake = None
        for (worker, curve, point, repeats), kept in zip(jobs, samples, strict=True):
            if len(kept) * point.seconds > 5.0:
                continue
            try:
                wake = worker is not awake and point.seconds < _LONG_SECONDS
                made = worker.run(curve.name, point.rtol, repeats, 2 * cap, wake)
                awake = worker
                kept.append(made[:2])
            except TimeUp:
                point.note = "passed the cap in a later round"
    for (_, _, point, _), kept in zip(jobs, samples, strict=True):
        if kept:
            point.seconds, point.processor_seconds = (statistics.median(s) for s in zip(*kept, strict=True))
            point.samples = len(kept)
    for worker in workers.values():
        worker.close()
    return curves, absent


def _final(
    workers: dict[str, Worker], curves: list[Curve], task: Any, reference: np.ndarray, cap: float, say: Any
) -> None:
    peers = [c for c in curves if c.group != "gflow" and c.seconds_at(TARGET) is None]
    for curve in sorted(peers, key=lambda c: c.promise(task.rtols)[0])[:FINALISTS]:
        expected, rtol = curve.promise(task.rtols)
        curve.points = [p for p in curve.points if not p.capped]
        curve.points.append(_pilot(workers[curve.group], curve, task, rtol, reference, cap))
        say(f"  final, {curve.name} at rtol {rtol:g}, expected {expected:.2g} s: {_text(curve.points[-1])}")


def _pilot(worker: Worker, curve: Curve, task: Any, rtol: float, reference: np.ndarray, cap: float) -> Point:
    try:
        if math.isnan(curve.first_call) and curve.group in _COMPILE_SECONDS:
            curve.first_call = worker.first_call(curve.name, rtol, cap)
        seconds, processor, states = worker.run(curve.name, rtol, 1, cap)
    except TimeUp:
        return Point(rtol, math.inf, cap, 0, capped=True, note=f"stopped at {cap:.3g} s")
    if isinstance(states, str) or states is None:
        return Point(rtol, math.inf, seconds, 1, processor, note=str(states))
    error = task.error(states, reference)
    note = "" if math.isfinite(error) else "gave up on the way"
    return Point(rtol, error, seconds, 1, processor, note=note)


def _text(p: Point) -> str:
    return p.note if p.capped else f"{p.error:.0e} in {p.seconds:.2g} s"
