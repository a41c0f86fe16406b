"""Trajectory: states of a run with its whole cause, its gauges and what it says of its own accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow import _record
from gflow.objective import Objective

Array = NDArray[np.float64]

#: Largest P for which the status measures the sensitivity of its own accord.
SENSITIVITY_SIZE = 500
_UNSTABLE = 1e-3
# What rtol must have grown by for that to be the flow's doing.
_GROWN = 10.0
# Drift of what is conserved, in rtol, at which the status speaks of it, if it is that large.
_LOST = 100.0


class Status(NamedTuple):
    """Why a run ended, as a word and as sentences.

    Attributes
    ----------
    code : str
        ``"finished"``, ``"stopped"`` (by ``stop=``), ``"at_rest"`` (by ``rest=``), ``"interrupted"``, ``"failed"`` (a callable raised),
        ``"max_steps"``, ``"step_too_small"``, ``"non_finite"``, ``"memory"``, ``"zero_neuron"`` (a neuron
        reached w = 0, where the flow can go on in several ways), ``"stuck"`` (events without end) or
        ``"settled"`` (by ``clock="loss"``: the loss tends to a finite value).
    message : str
        What happened, and what to try.
    warnings : tuple of str
        What else should be known before the numbers are trusted; each begins with its name.
    """

    code: str
    message: str
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the run did what was asked, and nothing puts its numbers in doubt."""
        return self.code in ("finished", "stopped", "at_rest") and not self.warnings

    def __str__(self) -> str:
        return " ".join([self.message, *self.warnings])


class Steps(NamedTuple):
    """Every attempted step: start, length, and whether it was accepted, each (S,).

    With ``clock="loss"`` in units of log(1/L); lengths of rejected steps are then to first order.
    """

    t: Array
    h: Array
    accepted: NDArray[np.bool_]


class Methods(NamedTuple):
    """Which method went on from which time: ``t`` (M,) and ``name`` (M,)."""

    t: Array
    name: NDArray[np.str_]


class Events(NamedTuple):
    """What happened at the kinks of a ReLU network, in order, each (E,).

    ``t``; ``neuron``; ``sample`` (the first of those with parallel inputs); ``kind``: ``"activate"`` and
    ``"deactivate"`` (the neuron passes the sample's hyperplane), ``"slide"`` (it begins to move along it),
    ``"leave_active"`` and ``"leave_inactive"`` (it stops to), ``"rest"`` (it stays on it without being
    pushed), ``"not_unique"`` (from here the flow can go on in several ways).
    """

    t: Array
    neuron: NDArray[np.int64]
    sample: NDArray[np.int64]
    kind: NDArray[np.str_]


class Limit(NamedTuple):
    """What is known of the limit t = ∞, whose state is the last of the trajectory.

    ``kind``: ``"minimum"``, isolated or in a valley of minima; ``"saddle"``, a critical point from which the flow
    does not depart although the Hessian has a negative eigenvalue; ``"algebraic"``, approached like a power of t;
    ``"degenerate"``, a critical point where the Hessian is zero; ``"none"``: the speed falls too slowly for a limit.
    ``remainder``: bound on the distance ‖θ‖ between the given state and the limit of the flow through the states
    that were computed, to leading order; what the integration errs by is in ``error_estimate()``.  Directions whose
    rates are below rounding, some 1e-13 of the largest, count as standing still.
    ``exponent``: q where what is left falls like t^(−q), else NaN.  ``stiff``: number of stiff directions;
    ``slowest``: the smallest eigenvalue among them, the rate of the approach; ``lowest``: the lowest eigenvalue of
    the Hessian.  ``reached``: the time to which the flow was integrated.  With ``coords="log"`` all of that is of
    the coordinates, a unit of whose length moves no log\\|w±\\| or log\\|u ± v\\| by more than one.
    """

    kind: str
    remainder: float
    stiff: int = 0
    slowest: float = float("nan")
    lowest: float = float("nan")
    exponent: float = float("nan")
    reached: float = float("nan")


class Gauges(NamedTuple):
    """What the exact flow conserves, as measured at the saved times; free checks, not error bounds.

    ``invariant_drift`` (T,): largest change of a conserved quantity, relative to the size of the
    terms that cancel in it; None if the model names no invariants.
    ``dissipation_defect`` (T,): \\|L(0) − L(t) − ∫‖∇L‖²dt\\| relative to L(0); None without a loss or
    for gradient descent.  With ``clock="loss"``: \\|log(L(0)/L) − ∫‖∇log L‖²ds\\| relative to
    max(1, log(L(0)/L)).  With ``coords="log"``: of the function that the coordinates descend, relative to its
    value at the start or its fall since, whichever is larger; None where they descend none.
    """

    invariant_drift: Array | None
    dissipation_defect: Array | None


class ErrorEstimate(NamedTuple):
    """Measured difference from a run at a hundredth of the tolerance.

    ``theta`` (T,): ‖θ − θ_ref‖ / ‖θ_ref‖; ``loss`` (T,): \\|L − L_ref\\|, absolute (None without a loss);
    ``reference``: the finer run.  NaN at times that the finer run did not reach.  With ``clock="loss"`` the
    states are compared at equal loss, and ``log_time`` (T,) is the difference of log t, absolute; else None.
    """

    theta: Array
    loss: Array | None
    reference: Trajectory
    log_time: Array | None = None


def _nothing() -> None:
    """A default that, unlike None itself, leaves no attribute on the class, see ``Trajectory.__getattr__``."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """States of a network along gradient flow or gradient descent.

    Attributes
    ----------
    t : array (T,)
        Times of the saved states; the sum of the step sizes so far for gradient descent; log(1/L) with
        ``clock="loss"``.
    theta : array (T, P)
        Parameters.
    outcome : Status
        How the run ended; :attr:`status` adds what the trajectory says of its accuracy.
    counts : dict
        Accepted and rejected steps, gradients; products with the Hessian where the method may take any.
    events : Events or None
        Events at kinks; None where the flow has none or they were not located.
    limit : Limit or None
        What is known of the limit, where the last time is ∞ and the flow came near it.
    observed : dict of str to array (T, ...)
        Observables computed on the way; also ``trajectory[name]``.
    log_time : array (T,) or None
        With ``clock="loss"``: logarithm of the time at which the flow dθ/dt = −∇L is in the state; −inf at
        the start.
    s : array (T,) or None
        With ``clock="loss"``: the time of the flow dθ/ds = −∇log L, ds = L dt.
    coordinates : array (T, M) or None
        With ``coords="log"`` and of a stochastic flow: the states in the coordinates of the integration.
    versions : dict
        Versions of gflow, numpy, scipy, numba and Python that made it.

    Notes
    -----
    Made by :func:`gflow.flow` and :func:`gflow.descend`, or read by :func:`gflow.load`.
    """

    t: Array
    theta: Array
    outcome: Status
    counts: dict[str, int]
    history: Array | None = field(default_factory=_nothing, repr=False)
    takeovers: list[tuple[float, str]] | None = field(default_factory=_nothing, repr=False)
    events: Events | None = field(default_factory=_nothing, repr=False)
    limit: Limit | None = field(default_factory=_nothing, repr=False)
    observed: dict[str, Array] = field(default_factory=dict, repr=False)
    dissipation: Array | None = field(default_factory=_nothing, repr=False)
    log_time: Array | None = field(default_factory=_nothing, repr=False)
    s: Array | None = field(default_factory=_nothing, repr=False)
    coordinates: Array | None = field(default_factory=_nothing, repr=False)
    dense: tuple[Array, Array] | None = field(default_factory=_nothing, repr=False)
    checkpoints: tuple[Array, Array] | None = field(default_factory=_nothing, repr=False)
    state: dict[str, Array] = field(default_factory=dict, repr=False)
    versions: dict[str, str] = field(default_factory=dict, repr=False)
    recorded_spec: Any = field(default_factory=_nothing, repr=False)
    recorded_loss: Array | None = field(default_factory=_nothing, repr=False)
    solve: Callable[..., Trajectory] | None = field(default_factory=_nothing, repr=False)

    @classmethod
    def of(cls, fields: dict[str, Any], later: Callable[[], dict[str, Any]] | None = None) -> Trajectory:
        """What the constructor makes of the same fields, but for those that ``later`` gives when one of them is asked for.

        To collect all that may be asked of it takes longer than a short run does.
        """
        made = object.__new__(cls)
        made.__dict__.update(fields)
        made.__dict__["_later"] = later or dict
        return made

    def __getattr__(self, name: str) -> Any:
        """A field that is not there yet: fill in all of them."""
        own = self.__dict__
        later = own.get("_later")
        if later is not None and name in self.__dataclass_fields__:
            came = later()
            for key, kind in self.__dataclass_fields__.items():
                if key not in own:  # another thread may be at it, too
                    own.setdefault(key, came[key] if key in came else cast(Any, kind.default_factory)())
            own.pop("_later", None)  # and with it the run
        return object.__getattribute__(self, name)

    def __getstate__(self) -> dict[str, Any]:
        for name in self.__dataclass_fields__:
            getattr(self, name)
        return {name: value for name, value in dict(self.__dict__).items() if name != "_later"}

    def __repr__(self) -> str:
        name = "t" if self.log_time is None else "log(1/L)"
        return (
            f"Trajectory: {len(self.t)} states of {self.theta.shape[1]} parameters, "
            f"{name} = {self.t[0]:g} to {self.t[-1]:g}. {self.outcome}"
        )

    def __getitem__(self, name: str) -> Array:
        try:
            return self.observed[name]
        except KeyError:
            known = ", ".join(map(repr, self.observed)) or "none"
            raise KeyError(
                f"{name!r} was not observed on the way (observed: {known}); ask for it with "
                f"observe=[{name!r}], or compute it now with gflow.observe.along(trajectory, {name!r})"
            ) from None

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that the run was called with: ``gflow.flow(**trajectory.spec)`` repeats it.

        A user's own model or callable of a loaded trajectory is looked up by its import name; a
        warning says if its source has changed, and using it says if it was not found.
        """
        return _record.restored(self.recorded_spec)

    @cached_property
    def steps(self) -> Steps | None:
        """History of attempted steps; None for gradient descent, empty for a run of an ensemble."""
        if self.history is None:
            return None
        return Steps(self.history[:, 0], self.history[:, 1], self.history[:, 2].astype(bool))

    @cached_property
    def methods(self) -> Methods | None:
        """Methods of the flow and when each took over; None for gradient descent."""
        if self.takeovers is None:
            return None
        times, names = zip(*self.takeovers, strict=True)
        return Methods(np.array(times), np.array(names))

    @property
    def _loaded(self) -> bool:
        return isinstance(self.recorded_spec, _record.Recorded)

    @cached_property
    def objective(self) -> Objective:
        """Model on problem, as functions of the parameters."""
        return Objective(self.spec["model"], self.spec["problem"])

    @cached_property
    def _chart(self) -> Any:
        """The coordinates of ``coords="log"`` or of a stochastic flow."""
        model, spec = self.spec["model"], self.spec
        if "scheme" in spec:
            return model.noisy_coordinates(spec["problem"], spec["theta0"], spec["step_size"])
        return model.log_coordinates(spec["problem"], spec["theta0"])

    @cached_property
    def log_theta(self) -> Array:
        """Logarithms (T, P) of the parameters' sizes \\|θ\\|, with ``coords="log"`` also where these underflow."""
        if self.coordinates is not None:
            return self._chart.log_theta(self.coordinates)
        with np.errstate(divide="ignore"):
            return np.log(np.abs(self.theta))

    @cached_property
    def _potential(self) -> Objective:
        """What the flow descends: L, or log L with ``clock="loss"``, or a function of other coordinates."""
        if self.coordinates is not None:
            return Objective(self._chart, self.spec["problem"])
        if self.log_time is None:
            return self.objective
        return Objective(self.spec["model"], self.spec["problem"].log)

    @cached_property
    def log_loss(self) -> Array:
        """Logarithm of the loss (T,) at the saved states, exact where the loss itself would underflow.

        Raises
        ------
        ValueError
            For a loss without a logarithm: see ``Problem.log``.
        """
        model, problem = self.spec["model"], self.spec["problem"]
        if not getattr(model, "logarithms", False):
            raise ValueError(f"log_loss needs a model that knows log L; {type(model).__name__} does not")
        return Objective(model, problem.log).losses(self.theta)

    @property
    def end(self) -> Array:
        """The last saved state (P,)."""
        return self.theta[-1]

    @cached_property
    def loss(self) -> Array:
        """Loss (T,) at the saved states, NaN at one that is not finite; a ValueError if the model has no loss."""
        if self.recorded_loss is not None:
            return self.recorded_loss
        finite: NDArray[np.bool_] = np.all(np.isfinite(self.theta), axis=1)
        out = self.objective.losses(np.where(finite[:, None], self.theta, 0.0))
        out[~finite] = np.nan
        return out

    def _loss_or_none(self) -> Array | None:
        if self.recorded_loss is None and not self.objective.has("loss"):
            return None
        return self.loss

    @cached_property
    def gauges(self) -> Gauges:
        """Drift of the conserved quantities and the dissipation defect, at the saved times."""
        drift = None
        if self.objective.has("invariants"):
            start = np.asarray(self.spec["theta0"])
            drift = _invariant_drift(self.objective, start, self.t, self.theta)
        defect = None
        if self.dissipation is not None and self.coordinates is not None:
            first = self._potential.loss(self._chart.start)
            fall = first - self._potential.losses(self.coordinates)
            defect = np.abs(fall - self.dissipation) / np.maximum(np.abs(fall), abs(first) or 1.0)
        elif self.dissipation is not None and self.objective.has("loss"):
            first = self._potential.loss(self.spec["theta0"])
            if self.log_time is None:
                defect = np.abs(first - self.loss - self.dissipation) / (abs(first) or 1.0)
            else:
                fall = first - self._potential.losses(self.theta)
                defect = np.abs(fall - self.dissipation) / np.maximum(1.0, fall)
        return Gauges(drift, defect)

    @cached_property
    def status(self) -> Status:
        """How the run ended, with warnings; measures the sensitivity if P ≤ 500, and what is conserved at the end.

        It warns where errors of the size of rtol may have become more than 1e-3 of the state: of an unstable manifold if
        they have grown tenfold, else of a loose tolerance.
        """
        outcome = self._outcome_and_drift
        if self.checkpoints is None or not self._potential.has("hvp"):
            return outcome
        if self.checkpoints[1].shape[1] > SENSITIVITY_SIZE:
            said = f"Sensitivity not measured (P > {SENSITIVITY_SIZE}): call sensitivity()."
            return outcome._replace(message=f"{outcome.message} {said}")
        growth, amplification = self._growth
        if np.isnan(amplification):
            said = (
                "Sensitivity not measured: the states or the Hessian on the way are beyond double precision."
            )
            return outcome._replace(message=f"{outcome.message} {said}")
        amplified = (self.spec["rtol"] + np.finfo(float).eps) * amplification
        if amplified <= _UNSTABLE * (1.0 + 1e-9):
            return outcome
        if amplification < _GROWN:
            warning = (
                f"loose tolerance: errors of the size of rtol may have become {amplified:.1g} of the state. "
                "Compare with error_estimate(), or take a smaller rtol."
            )
            return outcome._replace(warnings=(*outcome.warnings, warning))
        warning = (
            "unstable manifold: along this trajectory a perturbation may have grown "
            f"{_exp_text(growth)}-fold, and errors of the size of rtol to {amplified:.1g} of the state; "
            "rounding may have decided where it went. Compare with error_estimate()."
        )
        return outcome._replace(warnings=(*outcome.warnings, warning))

    @property
    def _outcome_and_drift(self) -> Status:
        """How a flow ended, with a warning if by its end what the exact one conserves is lost."""
        if self.history is None:  # gradient descent and stochastic flows conserve nothing
            return self.outcome
        try:
            drift = self._drift_at_the_end()
        except Exception as error:  # of a user's invariants, or a model that is not there any more
            return self._unmeasured(f"{error}"[:200])
        if drift is None:
            return self.outcome
        if not np.isfinite(drift):
            return self._unmeasured("they are beyond double precision")
        if drift <= max(_UNSTABLE, _LOST * self.spec["rtol"]):
            return self.outcome
        warning = (
            f"conserved quantities lost: what the exact flow keeps has changed by {drift:.1g} of the largest term in it. A "
            "parameter that fell below atol may have changed its sign. Compare with error_estimate()."
        )
        return self.outcome._replace(warnings=(*self.outcome.warnings, warning))

    def _unmeasured(self, why: str) -> Status:
        return self.outcome._replace(
            message=f"{self.outcome.message} Conserved quantities not measured: {why}."
        )

    def _drift_at_the_end(self) -> float | None:
        """Drift of the conserved quantities in the last state that was integrated; a limit is extrapolated from there."""
        t, theta = self.t, self.theta
        if np.isinf(t[-1]):
            kept = "theta" in self.state and self.coordinates is None
            t = self.state["clock"][:1] if kept else t[:-1]  # its first number is the time
            theta = self.state["theta"][None] if kept else theta[:-1]
        if len(t) == 0 or not self.objective.has("invariants"):
            return None
        drift = _invariant_drift(self.objective, np.asarray(self.spec["theta0"]), t[-1:], theta[-1:])
        return None if drift is None else float(drift[0])

    def sensitivity(self) -> float:
        """How much a perturbation may have grown: exp ∫ max(−λ_min(H), 0) dt from the start to the end.

        NaN where the states or H on the way are beyond double precision.  H is the Hessian of the loss, at up to 64 of
        the accepted steps, thinned evenly in time and in relative time, times the distance between them; the integral
        is the trapezoid's.  Needs ``model.hvp``.

        Raises
        ------
        ValueError
            If the model has no Hessian-vector product, or the trajectory is of gradient descent, of a flow
            with events at kinks, or by ``clock="loss"``.
        """
        self._need_checkpoints()
        return float(np.exp(np.minimum(self._growth[0], 709.0)))

    @property
    def amplification(self) -> float:
        """How much a *relative* perturbation of the state may have grown between any two times s < t.

        The largest ‖θ(s)‖ exp(∫_s^t max(−λ_min(H), 0)) / ‖θ(t)‖, with the largest norms up to s and t: growth along an escape that the
        solution itself follows does not count.  Rounding × this bounds, to first order, what rounding
        has done.  Needs ``model.hvp``, as :meth:`sensitivity` does.
        """
        self._need_checkpoints()
        return self._growth[1]

    def _need_checkpoints(self) -> None:
        if self.checkpoints is None:
            kind = "of a run of an ensemble: gflow.flow(**trajectory.spec) repeats it"
            if self.steps is None:
                kind = "of gradient descent or of a stochastic flow"
            elif self.events is not None:
                kind = "of a flow with events at kinks"
            if self.log_time is not None:
                kind = 'by clock="loss", which keeps no states for it'
            raise ValueError(f"sensitivity is measured along a smooth flow; this trajectory is {kind}")

    @cached_property
    def _growth(self) -> tuple[float, float]:
        """Exponent of the sensitivity, and the amplification; NaN where the states or a Hessian are not finite."""
        assert self.checkpoints is not None
        times, states = self.checkpoints
        if np.isfinite(self.t[-1]):
            within = times < self.t[-1]  # steps overshoot the end
            end = self.end if self.coordinates is None else self.coordinates[-1]
            times, states = np.append(times[within], self.t[-1]), np.vstack([states[within], end])
        potential = self._potential
        potential.hvp_kernel  # noqa: B018  says so if there is none
        try:
            bottom = np.array([potential.eigenvalues(x, 1, "smallest", tol=1e-3)[0] for x in states])
        except (
            np.linalg.LinAlgError,
            RuntimeError,
            ValueError,
        ):  # how the solvers say that they met inf or NaN
            bottom = np.full(len(states), np.nan)
        if not (np.isfinite(bottom).all() and np.isfinite(np.linalg.norm(states))):
            return float("nan"), float("nan")
        rate = np.maximum(-bottom, 0.0)
        exponent = np.concatenate([[0.0], np.cumsum(0.5 * (rate[1:] + rate[:-1]) * np.diff(times))])
        # relative to the largest state so far: a flow that decays to zero amplifies nothing
        size = np.maximum.accumulate(np.linalg.norm(states, axis=1))
        size[size == 0.0] = np.finfo(float).tiny
        height = exponent - np.log(size)
        return float(exponent[-1]), float(np.exp(min(np.max(height - np.minimum.accumulate(height)), 709.0)))

    def at(self, t: ArrayLike) -> Array:
        """States (..., P) at any times within the run, from the stored interpolant.

        Raises
        ------
        ValueError
            If the run was made without ``dense=True``, or a time lies outside it.
        """
        if self.dense is None:
            raise ValueError("at() needs the dense output: run flow(..., dense=True), or give the times in t")
        times = np.asarray(t, dtype=np.float64)
        steps, coefficients = self.dense
        if len(steps) == 0:
            raise ValueError(f"t must lie within the run, which made no step from t = {self.t[0]:g}")
        first, last = steps[0, 0], float(self.state["clock"][0])
        bad = ~((times >= first) & (times <= last))
        if bad.any():
            raise ValueError(f"t must lie within the run, {first:g} to {last:g}; got {times[bad].flat[0]:g}")
        flat = times.ravel()
        step = np.clip(np.searchsorted(steps[:, 0], flat, side="right") - 1, 0, None)
        x = ((flat - steps[step, 0]) / steps[step, 1])[:, None]
        increment = np.zeros((flat.size, coefficients.shape[2]))
        for degree in range(coefficients.shape[1] - 1, 0, -1):
            increment = (increment + coefficients[step, degree]) * x
        states = (coefficients[step, 0] + increment).reshape(*times.shape, -1)
        return states if self.coordinates is None else self._chart.theta(states)

    def error_estimate(self) -> ErrorEstimate:
        """Solve again at rtol / 100 (at least 1e-13, atol scaled along) and measure the difference.

        Where rtol is too close to rounding for that, the other of Tsit5 and DOP853 is the reference.

        Raises
        ------
        ValueError
            For gradient descent, which has no discretisation error of its own.
        """
        if "scheme" in self.spec:
            raise ValueError(
                "error_estimate measures a flow; of a stochastic one compare the statistics with those of a smaller dt"
            )
        if self.steps is None or self.solve is None:
            raise ValueError("error_estimate measures a flow; gradient descent is exact but for rounding")
        rtol, method = max(self.spec["rtol"] / 100, 1e-13), self.spec["method"]
        if rtol > 0.1 * self.spec["rtol"]:  # too close to rounding for a finer run: take another method
            method = "tsit5" if method == "dop853" else "dop853"
        changes = {
            "t": self.t, "method": method, "rtol": rtol, "atol": self.spec["atol"] * (rtol / self.spec["rtol"]),
            "observe": None, "stop": None, "rest": None, "dense": False, "progress": False,
        }  # fmt: skip
        reference = self.solve(**{**self.spec, **changes})
        reached = np.flatnonzero(np.isin(self.t, reference.t))
        match = np.searchsorted(reference.t, self.t[reached])
        theta, loss = np.full(len(self.t), np.nan), None
        difference = np.linalg.norm(self.theta[reached] - reference.theta[match], axis=1)
        size = np.linalg.norm(reference.theta[match], axis=1)
        theta[reached] = difference / np.where(size > 0, size, 1.0)
        if self._loss_or_none() is not None:
            loss = np.full(len(self.t), np.nan)
            loss[reached] = np.abs(self.loss[reached] - reference.loss[match])
        log_time = None
        if self.log_time is not None and reference.log_time is not None:
            log_time = np.full(len(self.t), np.nan)
            ours, theirs = self.log_time[reached], reference.log_time[match]
            with np.errstate(invalid="ignore"):  # both are -inf at the start
                log_time[reached] = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
        return ErrorEstimate(theta, loss, reference, log_time)

    def save(self, path: str | Path) -> Path:
        """Write the trajectory and its whole cause to one ``.npz`` file; return its path.

        The file appears under its name only when it is complete.
        """
        parts: dict[str, Any] = {
            "t": self.t, "theta": self.theta, "dissipation": self.dissipation,
            "log_time": self.log_time, "s": self.s, "coordinates": self.coordinates,
            "loss": self.recorded_loss if self._loaded else self._loss_or_none(), "state": self.state, "observed": self.observed,
            "steps": None if self.steps is None else tuple(self.steps),
            "methods": None if self.methods is None else tuple(self.methods),
            "events": None if self.events is None else tuple(self.events),
            "limit": None if self.limit is None else list(self.limit),
            "dense": self.dense, "checkpoints": self.checkpoints,
            "counts": self.counts, "versions": self.versions,
            "outcome": [self.outcome.code, self.outcome.message, list(self.outcome.warnings)],
        }  # fmt: skip
        spec = self.recorded_spec if self._loaded else _record.Recorded.make(self.spec)
        return _record.write(Path(path), parts, spec)


def read(path: str | Path) -> Trajectory:
    """Read a trajectory that :meth:`Trajectory.save` wrote.

    Raises
    ------
    ValueError
        If the file is not such a trajectory.
    """
    parts, spec = _record.read(Path(path))
    if "ensemble" in parts:
        raise ValueError(f"path must name a trajectory; {path} holds an ensemble: read it with Ensemble.load")
    code, message, notes = parts["outcome"]
    steps, methods = parts["steps"], parts.get("methods")
    return Trajectory(
        t=parts["t"], theta=parts["theta"], outcome=Status(code, message, tuple(notes)),
        counts=parts["counts"], history=None if steps is None else np.column_stack(steps),
        takeovers=None if methods is None else list(zip(*(column.tolist() for column in methods), strict=True)),
        events=None if parts["events"] is None else Events(*parts["events"]),
        limit=None if parts["limit"] is None else Limit(*parts["limit"]),
        observed=parts["observed"], dissipation=parts["dissipation"],
        log_time=parts.get("log_time"), s=parts.get("s"), coordinates=parts.get("coordinates"),
        dense=parts["dense"], checkpoints=parts["checkpoints"],
        state=parts["state"], versions=parts["versions"],
        recorded_spec=spec, recorded_loss=parts["loss"],
    )  # fmt: skip


def _invariant_drift(objective: Objective, theta0: Array, t: Array, theta: Array) -> Array | None:
    with np.errstate(over="ignore", invalid="ignore"):
        start, start_size = objective.model.invariants(theta0)
    if np.size(start) == 0:
        return None
    rate = getattr(objective.model, "invariants_decay", 0.0) * objective.weight_decay
    drift = np.empty(len(t))
    with np.errstate(over="ignore", invalid="ignore"):  # NaN then says that it could not be measured
        for i, state in enumerate(theta):
            now, size = objective.model.invariants(state)
            expected = start * np.exp(-rate * t[i]) if rate else start
            scale = np.maximum(np.maximum(size, start_size), np.finfo(float).tiny)
            drift[i] = np.max(np.abs(now - expected) / scale)
    return drift


def _exp_text(exponent: float) -> str:
    return f"{np.exp(exponent):.1g}" if exponent < 700 else f"10^{exponent / np.log(10):.0f}"
