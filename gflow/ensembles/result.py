"""What has become of many runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gflow import _record
from gflow._run import Array
from gflow.ensembles.options import DESCENT_OPTIONS
from gflow.integrate import flow
from gflow.kernels import abi
from gflow.objective import Objective
from gflow.trajectory import Events, Status, Trajectory

OVER_KINKS = " Kinks were not located (events=False)."


@dataclass(frozen=True, eq=False)
class Ensemble:
    """States of many runs of one model on one problem.

    Attributes
    ----------
    t : array (T,), or (R, T) for descents whose step sizes differ
        Times of the saved states.
    theta : array (R, T, P)
        Parameters; NaN at times that a run did not reach.
    codes : array of str (R,)
        How each run ended: the codes of :class:`gflow.Status`.
    counts : dict of str to array of int (R,)
        Accepted and rejected steps and gradients of each run, and products with the Hessian where the method
        may take any; steps and gradients of a descent.
    last_t, last : arrays (R,), (R, P)
        How far each run has come, and its state there.
    observed : dict of str to array (R, T, ...)
        Observables computed on the way; also ``ensemble[name]``.
    dissipation : array (R, T) or None
        ∫‖∇L‖²dt; None for descents.
    versions : dict
        Versions of gflow, numpy, scipy, numba and Python that made it.

    Notes
    -----
    ``ensemble[r]`` is run r as a :class:`gflow.Trajectory`: its states and its cause, without the history of its
    steps.  Its sensitivity is not measured: ``gflow.flow(**ensemble[r].spec)`` repeats the run with all of that,
    bit for bit.  A run of an ensemble of descents may be continued with ``descend(..., start=ensemble[r])``.
    """

    t: Array
    theta: Array
    codes: NDArray[np.str_]
    counts: dict[str, NDArray[np.int64]]
    last_t: Array
    last: Array
    saved: NDArray[np.int64] = field(repr=False)  # (R,): how many of the times each run reached
    # of the runs of which there is more to say than "finished"
    outcomes: dict[int, Status] = field(repr=False)
    observed: dict[str, Array] = field(default_factory=dict, repr=False)
    dissipation: Array | None = field(default=None, repr=False)
    last_dissipation: Array | None = field(default=None, repr=False)
    moments: Array | None = field(default=None, repr=False)  # of descents
    atol: Array | None = field(default=None, repr=False)  # (R,) of flows
    coordinates: Array | None = field(default=None, repr=False)  # (R, T, n + 1) of stochastic flows
    table: tuple[Any, ...] | None = field(default=None, repr=False)  # run (E,), and the columns of Events
    versions: dict[str, str] = field(default_factory=dict, repr=False)
    recorded_spec: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.theta)

    def __repr__(self) -> str:
        runs, rows, size = self.theta.shape
        return f"Ensemble: {runs} runs, {rows} states of {size} parameters each. {self.status}"

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[r] for r in range(len(self)))

    def __getitem__(self, which: Any) -> Any:
        """An observable (R, T, ...) by its name, or a run by its number; a slice gives a list of runs."""
        if isinstance(which, str):
            if which not in self.observed:
                known = ", ".join(map(repr, self.observed)) or "none"
                raise KeyError(f"{which!r} was not observed on the way (observed: {known})")
            return self.observed[which]
        found = range(len(self))[which]
        return [self._run(r) for r in found] if isinstance(found, range) else self._run(found)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that the runs were called with: ``gflow.ensemble(**ensemble.spec)`` repeats them."""
        return _record.restored(self.recorded_spec)

    @cached_property
    def objective(self) -> Objective:
        """Model on problem, as functions of the parameters."""
        return Objective(self.spec["model"], self.spec["problem"])

    @cached_property
    def loss(self) -> Array:
        """Loss (R, T) at the saved states, NaN where there is none; a ValueError if the model has no loss."""
        runs, rows, size = self.theta.shape
        out, o = np.empty(runs * rows), self.objective
        abi.losses(o.loss_kernel, o.data, o.dims, o.work, self.theta.reshape(-1, size), out)
        out = out.reshape(runs, rows)
        out[np.arange(rows) >= self.saved[:, None]] = np.nan
        return out

    @property
    def status(self) -> Status:
        """How many runs ended how; the code is that of all, or ``"mixed"``."""
        names, first, counts = np.unique(self.codes, return_index=True, return_counts=True)
        said = ", ".join(
            f"{count} {name}" + ("" if name == "finished" else f" (first: run {r})")
            for name, r, count in zip(names, first, counts, strict=True)
        )
        kinds: dict[str, int] = {}
        for one in self.outcomes.values():
            for note in one.warnings:
                kinds[note.split(":")[0]] = kinds.get(note.split(":")[0], 0) + 1
        notes = tuple(f"{name}: in {count} runs; see their own status." for name, count in kinds.items())
        return Status(str(names[0]) if len(names) == 1 else "mixed", f"Of {len(self)} runs: {said}.", notes)

    def _run(self, r: int) -> Trajectory:
        spec = self.spec
        n, t = int(self.saved[r]), self.t if self.t.ndim == 1 else self.t[r]
        rows, last_t = len(t), float(self.last_t[r])
        t, theta = t[:n], self.theta[r, :n]
        dissipation = None if self.dissipation is None else self.dissipation[r, :n]
        observed = {name: values[r][:n] for name, values in self.observed.items()}
        if n < rows and (n == 0 or last_t > t[-1]):  # the last state is none of those that were asked for
            t, theta = np.append(t, last_t), np.vstack([theta, self.last[r]])
            if dissipation is not None and self.last_dissipation is not None:
                dissipation = np.append(dissipation, self.last_dissipation[r])
            observed = {name: _with_blank(values) for name, values in observed.items()}
        counts = {name: int(values[r]) for name, values in self.counts.items()}
        if self.coordinates is not None:
            kept = ("model", "problem", "observe", "step_size", "scheme", "dt")
            one = {name: spec[name] for name in kept} | {"stop": None, "t": spec["t"]}
            one |= {"theta0": spec["thetas"][r], "rng": int(spec["rng"][r])}
            return Trajectory(
                t=t[:n], theta=theta[:n], coordinates=self.coordinates[r, :n], counts=counts, outcome=self.outcomes[r],
                observed={name: values[:n] for name, values in observed.items()}, versions=self.versions,
                recorded_spec=one,
            )  # fmt: skip
        common: dict[str, Any] = {
            "t": t, "theta": theta, "dissipation": dissipation, "observed": observed, "counts": counts,
            "versions": self.versions,
        }  # fmt: skip
        one = {name: spec[name] for name in ("model", "problem", "observe")} | {"theta0": spec["thetas"][r]}
        if self.moments is not None:
            names = [name for name in DESCENT_OPTIONS if name != "rng"]
            one |= {name: spec[name] for name in (*names, "n_steps")} | {"stop": None}
            sizes, rng = spec["step_size"], spec["rng"]
            one["step_size"] = float(sizes[r % len(sizes)]) if sizes.ndim == 1 else sizes[r % len(sizes)]
            one["rng"] = None if rng is None else int(rng[r])
            state = {"theta": self.last[r], "step": np.array([counts["steps"]]), "moments": self.moments[r]}
            done = Status("finished", f"Made {counts['steps']} steps.")
            return Trajectory(**common, outcome=self.outcomes.get(r, done), state=state, recorded_spec=one)
        assert self.atol is not None
        one |= {name: spec[name] for name in ("method", "rtol", "events", "max_steps")}
        one |= {"t": spec["t"], "atol": float(self.atol[r]), "stop": None, "dense": False}
        done = Status(
            "finished", f"Reached t = {last_t:g} in {counts['accepted'] + counts['rejected']} steps."
        )
        outcome = self.outcomes.get(r, done)
        said = "" if self.table is not None or not hasattr(spec["model"], "piecewise") else OVER_KINKS
        said += " Steps and sensitivity are not kept in an ensemble: gflow.flow(**trajectory.spec) repeats the run."
        return Trajectory(
            **common, outcome=Status(outcome.code, outcome.message + said, outcome.warnings),
            history=np.empty((0, 3)), events=self.events(r),
            recorded_spec=one, solve=flow,
        )  # fmt: skip

    def events(self, r: int) -> Events | None:
        """The events of run r at kinks, up to its last saved time; None where there are none to locate."""
        if self.table is None:
            return None
        mine = self.table[0] == r
        return Events(*(column[mine] for column in self.table[1:]))

    def save(self, path: str | Path) -> Path:
        """Write the runs and their whole cause to one ``.npz`` file; return its path."""
        loaded = isinstance(self.recorded_spec, _record.Recorded)
        spec = self.recorded_spec if loaded else _record.Recorded.make(self.spec)
        parts = {name: getattr(self, name) for name in _KEPT}
        parts["outcomes"] = [[r, s.code, s.message, list(s.warnings)] for r, s in self.outcomes.items()]
        return _record.write(Path(path), {"ensemble": parts}, spec)

    @classmethod
    def load(cls, path: str | Path) -> Ensemble:
        """Read an ensemble that :meth:`save` wrote.

        Raises
        ------
        ValueError
            If the file is not an ensemble of gflow.
        """
        parts, spec = _record.read(Path(path))
        if "ensemble" not in parts:
            raise ValueError(
                f"path must name an ensemble; {path} holds a trajectory: read it with gflow.load"
            )
        kept = parts["ensemble"]
        outcomes = {
            r: Status(code, message, tuple(notes)) for r, code, message, notes in kept.pop("outcomes")
        }
        return cls(**kept, outcomes=outcomes, recorded_spec=spec)


_KEPT = (
    "t", "theta", "codes", "counts", "last_t", "last", "observed", "dissipation", "last_dissipation", "moments",
    "saved", "atol", "coordinates", "table", "versions",
)  # fmt: skip


def _with_blank(values: Array) -> Array:
    """One more row, of NaN."""
    if values.dtype == object:
        return np.append(values, np.array([None], dtype=object))
    blank = np.full((1, *values.shape[1:]), np.nan)
    return np.concatenate([values, blank])
