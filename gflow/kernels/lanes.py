"""The loop of explicit.py for many runs side by side, in vector registers.

Each run has a lane: its own time, step size and error, its own steps accepted and rejected; what the lanes share is the
stage of the step that is computed.  A run that has ended makes room for the next.  The lane stands last in every array,
so that the innermost loops go over lanes, and each lane goes through the operations of explicit.py in their order: a
run's bits are those of the single one.

A step that passes times to be saved is copied aside; when a register of those has come together, their interpolants are
evaluated side by side, too.

The length of the lanes is known at run time only: loops of a short length known before are unrolled, and make no vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflow.kernels import ensembles, explicit
from gflow.kernels.abi import kernel
from gflow.kernels.tableaus import MAX_STAGES, Tableau

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Why the loop came back, besides ensembles.FINISHED and ensembles.PAUSED: there is room for more runs; there are more
# lanes than runs to come.
ROOM, NARROW = 2, 3
#: Fewest lanes that pay (measured): as many are left to the last runs.
LEAST = 8

# Rows of Lanes.clock, the last of them scratch; ...
(
    T, H, ERROR_BEFORE, DISSIPATION, NEXT, ATOL, T_NEW, H_NEW, DISSIPATION_NEW, ERROR, HIGH, LOW
) = range(12)  # fmt: skip
# ... of Lanes.counters ...
ACCEPTED, REJECTED, GRADIENTS, REJECTED_LAST, SAVED, RUN, GOOD = range(7)
# ... of Passed.clock ...
BEGAN, STEP, BEFORE, TOLERANCE, X, LACK, REACHED = range(7)
# ... of Passed.counters ...
WHOSE, PLACE, TIMES = range(3)
# ... and places in the cursor: the next run, lanes that are taken, steps copied aside, whether more runs are to come, and
# all steps so far.
NEXT_RUN, TAKEN, ASIDE, MORE, STEPS = range(5)

# What Lanes.counters[RUN] says of a lane that is free.
FREE = -1


class Lanes(NamedTuple):
    """L runs under way; what is named flat is the same memory."""

    clock: Floats  # (rows, L): see the places above; NEXT is the next time to be saved
    counters: Ints  # (rows, L)
    theta: Floats  # (P, L)
    flat_theta: Floats  # (P L,)
    trial: Floats  # (P, L)
    flat_trial: Floats
    gradient: Floats  # (P, L)
    flat_gradient: Floats
    stages: Floats  # (S + E, P, L)
    flat_stages: Floats  # (S + E, P L)
    slopes: Floats  # (S + E, L)
    coefficient: Floats  # (S + E, L): scratch
    work: Floats  # (W L,)


class Passed(NamedTuple):
    """Up to so many steps that pass times to be saved."""

    clock: Floats  # (rows, L)
    counters: Ints  # (rows, L): the run, the place of the first time, and their number
    lanes: Lanes  # with these steps' states and stages; its clock and counters are not used


def new_lanes(count: int, size: int, work: int, tableau: Tableau) -> Lanes:
    """So many lanes, all free, for networks of ``size`` parameters that take so much ``work``."""
    stages = len(tableau.node)
    counters = np.zeros((7, count), dtype=np.int64)
    counters[RUN] = FREE
    clock = np.zeros((12, count))
    clock[NEXT] = np.inf
    return _lanes(
        clock, counters, np.zeros((size, count)), np.zeros((stages, size, count)),
        np.zeros((stages, count)), work,
    )  # fmt: skip


def _lanes(clock: Floats, counters: Ints, theta: Floats, stages: Floats, slopes: Floats, work: int) -> Lanes:
    trial, gradient = np.zeros_like(theta), np.zeros_like(theta)
    count = theta.shape[1]
    rows = max(len(stages), MAX_STAGES)
    return Lanes(
        clock, counters, theta, theta.reshape(-1), trial, trial.reshape(-1), gradient, gradient.reshape(-1),
        stages, stages.reshape(len(stages), -1), slopes, np.zeros((rows, count)), np.zeros(work * count),
    )  # fmt: skip


def narrowed(lanes: Lanes) -> Lanes:
    """Fewer lanes, with all that are taken; a multiple of ``LEAST`` where there are so many."""
    taken = np.flatnonzero(lanes.counters[RUN] != FREE)
    free = np.flatnonzero(lanes.counters[RUN] == FREE)
    keep = np.concatenate([taken, free[: -len(taken) % LEAST]])
    work = lanes.work.size // lanes.counters.shape[1]
    return _lanes(
        *(np.ascontiguousarray(a[..., keep]) for a in
          (lanes.clock, lanes.counters, lanes.theta, lanes.stages, lanes.slopes)),
        work,
    )  # fmt: skip


def new_passed(lanes: Lanes, tableau: Tableau) -> Passed:
    """Room for twice as many steps as there are lanes: so many may come at once, and few are to be waited for."""
    size, width = lanes.theta.shape
    work, count = lanes.work.size // width, 2 * width
    counters = np.zeros((3, count), dtype=np.int64)
    return Passed(np.zeros((7, count)), counters, new_lanes(count, size, work, tableau))


# ---- sums over stages, in the order of explicit.py -----------------------------------------------------------


@kernel
def _sum(out, stages, index, weight, row, count):
    """out = sum_j weight[row, j] stages[index[row, j]], one after another."""
    for q in range(out.size):
        out[q] = 0.0
    j = 0
    while j + 4 <= count:
        a, k = weight[row, j], index[row, j]
        b, l = weight[row, j + 1], index[row, j + 1]
        c, m = weight[row, j + 2], index[row, j + 2]
        d, n = weight[row, j + 3], index[row, j + 3]
        for q in range(out.size):
            out[q] = out[q] + a * stages[k, q] + b * stages[l, q] + c * stages[m, q] + d * stages[n, q]
        j += 4
    if j + 2 <= count:
        a, k = weight[row, j], index[row, j]
        b, l = weight[row, j + 1], index[row, j + 1]
        for q in range(out.size):
            out[q] = out[q] + a * stages[k, q] + b * stages[l, q]
        j += 2
    if j < count:
        a, k = weight[row, j], index[row, j]
        for q in range(out.size):
            out[q] += a * stages[k, q]


@kernel
def _weigh(coefficient, h, weight, row, count):
    """coefficient[j] = h weight[row, j]."""
    for j in range(count):
        w = weight[row, j]
        for l in range(h.size):
            coefficient[j, l] = h[l] * w


@kernel
def _combine(out, theta, coefficient, stages, index, row, count):
    """out = theta + sum_j coefficient[j] stages[index[row, j]], four stages a pass."""
    rows, lanes = out.shape
    for i in range(rows):
        for l in range(lanes):
            out[i, l] = theta[i, l]
    j = 0
    while j + 4 <= count:
        k, m, n, o = index[row, j], index[row, j + 1], index[row, j + 2], index[row, j + 3]
        for i in range(rows):
            for l in range(lanes):
                out[i, l] += (
                    coefficient[j, l] * stages[k, i, l]
                    + coefficient[j + 1, l] * stages[m, i, l]
                    + coefficient[j + 2, l] * stages[n, i, l]
                    + coefficient[j + 3, l] * stages[o, i, l]
                )
        j += 4
    if j + 2 <= count:
        k, m = index[row, j], index[row, j + 1]
        for i in range(rows):
            for l in range(lanes):
                out[i, l] += coefficient[j, l] * stages[k, i, l] + coefficient[j + 1, l] * stages[m, i, l]
        j += 2
    if j < count:
        k = index[row, j]
        for i in range(rows):
            for l in range(lanes):
                out[i, l] += coefficient[j, l] * stages[k, i, l]


# ---- one step ------------------------------------------------------------------------------------------------


@kernel
def _gradients(lane_gradient, data, dims, lanes):
    """The gradient at the trial states."""
    g = lanes.gradient
    rows, count = g.shape
    for l in range(count):
        g[rows - 1, l] = np.nan  # stays, if a user's kernel raises: compiled callers cannot see that
    lane_gradient(0.0, lanes.flat_trial, data, dims, lanes.work, lanes.flat_gradient)


@kernel
def _field(lane_gradient, data, dims, lanes, row):
    """Row of the stages = -grad L at the trial states, of the slopes = |grad L|^2."""
    g, stages, slopes = lanes.gradient, lanes.stages, lanes.slopes
    rows, count = g.shape
    _gradients(lane_gradient, data, dims, lanes)
    for i in range(rows):
        for l in range(count):
            stages[row, i, l] = -g[i, l]
            slopes[row, l] = (slopes[row, l] if i > 0 else 0.0) + g[i, l] * g[i, l]


@kernel
def _attempt(lane_gradient, data, dims, tableau, lanes):
    """Stages of one step in every lane."""
    index, weight, count, theta, trial = (
        tableau.source,
        tableau.weight,
        tableau.terms,
        lanes.theta,
        lanes.trial,
    )
    h = lanes.clock[H]
    rows, width = theta.shape
    for r in range(1, tableau.sizes[0]):
        if rows < explicit.FEW:
            _sum(lanes.flat_trial, lanes.flat_stages, index, weight, r, count[r])
            for i in range(rows):
                for l in range(width):
                    trial[i, l] = theta[i, l] + h[l] * trial[i, l]
        else:
            _weigh(lanes.coefficient, h, weight, r, count[r])
            _combine(trial, theta, lanes.coefficient, lanes.stages, index, r, count[r])
        _field(lane_gradient, data, dims, lanes, r)


@kernel
def _estimate(tableau, lanes, row, rtol, place):
    """Sum over the parameters of (h estimate / scale)^2, of one of the two estimates, to a row of the clock."""
    index, weight, count, clock = tableau.source, tableau.weight, tableau.terms, lanes.clock
    theta, trial, x = lanes.theta, lanes.trial, lanes.gradient
    rows, width = theta.shape
    atol, total, h = clock[ATOL], clock[place], clock[H]
    for l in range(width):
        total[l] = 0.0
    if count[row] == 0:
        return
    if rows < explicit.FEW:
        _sum(lanes.flat_gradient, lanes.flat_stages, index, weight, row, count[row])
        for i in range(rows):
            for l in range(width):
                x[i, l] *= h[l]
    else:
        _weigh(lanes.coefficient, h, weight, row, count[row])
        for i in range(rows):
            for l in range(width):
                x[i, l] = 0.0
        _combine(x, x, lanes.coefficient, lanes.stages, index, row, count[row])
    for i in range(rows):
        for l in range(width):
            scaled = x[i, l] / (atol[l] + rtol * max(abs(theta[i, l]), abs(trial[i, l])))
            total[l] += scaled * scaled


@kernel
def _judge(tableau, lanes):
    """Time, dissipation and step size after the step in every lane; returns how many pass a time to be saved."""
    clock, counters, slopes = lanes.clock, lanes.counters, lanes.slopes
    size, width = lanes.theta.shape
    exponent, last = tableau.sizes[2], tableau.sizes[0] - 1
    t, h, before, q, next_time = clock[T], clock[H], clock[ERROR_BEFORE], clock[DISSIPATION], clock[NEXT]
    t_new, h_new, q_new, errors = clock[T_NEW], clock[H_NEW], clock[DISSIPATION_NEW], clock[ERROR]
    highs, lows, reached = clock[HIGH], clock[LOW], slopes[last]
    rejected, good = counters[REJECTED_LAST], counters[GOOD]
    for l in range(width):
        high, low = highs[l], lows[l]
        error = high / np.sqrt((high + 0.01 * low) * size)
        error = 0.0 if (high == 0.0) & (low == 0.0) else error
        # of the new state: not all estimates hold it
        errors[l] = error if abs(reached[l]) < np.inf else np.inf
    for l in range(width):
        error = errors[l]
        accepted = error <= 1.0  # false for NaN
        capped = (rejected[l] > 0) & (rejected[l] < explicit._NOT_FINITE_BEFORE)
        h_new[l] = h[l] * explicit.next_step(error, before[l], accepted, capped, exponent)
        good[l] = 1 if accepted else 0
    for l in range(width):
        q_new[l] = q[l]
    for j in range(tableau.terms[last]):
        w, slope = tableau.weight[last, j], slopes[tableau.source[last, j]]
        for l in range(width):
            q_new[l] += h[l] * w * slope[l]
    passing = 0
    for l in range(width):
        end = t[l] + h[l]
        t_new[l] = end if good[l] == 1 else t[l]
        passing += 1 if (good[l] == 1) & (end >= next_time[l]) else 0
    return passing


@kernel
def _settle(tableau, lanes, max_steps):
    """Accept or reject the step in every lane; returns how many lanes may have come to their end."""
    clock, counters = lanes.clock, lanes.counters
    theta, trial, stages, slopes = lanes.theta, lanes.trial, lanes.stages, lanes.slopes
    rows, width = theta.shape
    last = tableau.sizes[0] - 1
    good = counters[GOOD]
    for i in range(rows):
        for l in range(width):
            theta[i, l] = trial[i, l] if good[l] == 1 else theta[i, l]
            stages[0, i, l] = stages[last, i, l] if good[l] == 1 else stages[0, i, l]
    accepted, rejected, gradients = counters[ACCEPTED], counters[REJECTED], counters[GRADIENTS]
    rejected_last = counters[REJECTED_LAST]
    for l in range(width):
        accepted[l] += good[l]
        rejected[l] += 1 - good[l]
        gradients[l] += last
    t, h, before, q, errors = clock[T], clock[H], clock[ERROR_BEFORE], clock[DISSIPATION], clock[ERROR]
    t_new, h_new, q_new = clock[T_NEW], clock[H_NEW], clock[DISSIPATION_NEW]
    slope, slope_new = slopes[0], slopes[last]
    for l in range(width):
        yes = good[l] == 1
        t[l], h[l] = t_new[l], h_new[l]
        q[l] = q_new[l] if yes else q[l]
        slope[l] = slope_new[l] if yes else slope[l]
        before[l] = max(errors[l], 1e-4) if yes else before[l]
        why = explicit._TOO_LARGE if errors[l] < np.inf else explicit._NOT_FINITE
        since = explicit._NOT_FINITE_BEFORE if rejected_last[l] == explicit._NOT_FINITE else 0
        rejected_last[l] = since if yes else why
    ending, next_time = 0, clock[NEXT]
    for l in range(width):
        stuck = explicit.no_later(t[l], h[l])
        tired = accepted[l] + rejected[l] >= max_steps
        lost = not (slope[l] < np.inf)
        ending += 1 if stuck | tired | lost | (next_time[l] == np.inf) else 0
    return ending


# ---- runs come and go ----------------------------------------------------------------------------------------


@kernel
def _verdict(lanes, l, times, max_steps):
    """Why the run in a lane ends here, or ``ensembles.UNFINISHED``."""
    clock, counters = lanes.clock, lanes.counters
    if counters[SAVED, l] == times.size:
        return explicit.FINISHED
    if counters[ACCEPTED, l] + counters[REJECTED, l] >= max_steps:
        return explicit.MAX_STEPS
    if not np.isfinite(lanes.slopes[0, l]):
        return explicit.NON_FINITE
    if explicit.no_later(clock[T, l], clock[H, l]):
        not_finite = counters[REJECTED_LAST, l] >= explicit._NOT_FINITE
        return explicit.NON_FINITE if not_finite else explicit.STEP_TOO_SMALL
    return ensembles.UNFINISHED


@kernel
def _keep(lanes, l, runs):
    """Hand over how far the run in a lane has come."""
    clock, counters, r = lanes.clock, lanes.counters, lanes.counters[RUN, l]
    runs.saved[r] = counters[SAVED, l]
    runs.last_t[r], runs.last_dissipation[r] = clock[T, l], clock[DISSIPATION, l]
    for i in range(lanes.theta.shape[0]):
        runs.last[r, i] = lanes.theta[i, l]
    runs.counts[r, 0], runs.counts[r, 1] = counters[ACCEPTED, l], counters[REJECTED, l]
    runs.counts[r, 2] += counters[GRADIENTS, l]  # others come from steps copied aside
    counters[GRADIENTS, l] = 0


@kernel
def _free(lanes, l):
    """Leave a lane without a run: it goes on, but nowhere."""
    lanes.counters[RUN, l] = FREE
    lanes.clock[H, l], lanes.clock[NEXT, l] = 0.0, np.inf


@kernel
def _begin(gradient, data, dims, work, tableau, one, lanes, l, runs, r, times, rtol, atol):
    """Put a run in a lane, with its first gradient and step size."""
    clock, counters = lanes.clock, lanes.counters
    ensembles.restart(one, work, runs.starts[r])
    atol[:] = runs.atols[r]
    explicit._start(gradient, data, dims, work, tableau, one, rtol, atol)
    for i in range(one.theta.size):
        lanes.theta[i, l] = one.theta[i]
        lanes.stages[0, i, l] = one.stages[0, i]
    lanes.slopes[0, l] = one.slopes[0]
    clock[T, l], clock[DISSIPATION, l], clock[ATOL, l] = 0.0, 0.0, runs.atols[r]
    clock[H, l], clock[ERROR_BEFORE, l] = one.clock[explicit.H], one.clock[explicit.ERROR_BEFORE]
    counters[:, l] = 0
    counters[GRADIENTS, l], counters[RUN, l] = one.counters[explicit.GRADIENTS], r
    saved = 0
    while saved < times.size and times[saved] <= 0.0:
        for i in range(one.theta.size):
            runs.theta[r, saved, i] = one.theta[i]
        runs.dissipation[r, saved] = 0.0
        saved += 1
    counters[SAVED, l] = saved
    clock[NEXT, l] = times[saved] if saved < times.size else np.inf


@kernel
def _fill(
    gradient, data, dims, work, tableau, one, lanes, l, runs, cursor, end, times, rtol, atol, max_steps
):
    """Put the next run in a free lane, if there is one; those that end at once are passed by."""
    while cursor[NEXT_RUN] < end:
        r = cursor[NEXT_RUN]
        cursor[NEXT_RUN] += 1
        _begin(gradient, data, dims, work, tableau, one, lanes, l, runs, r, times, rtol, atol)
        code = _verdict(lanes, l, times, max_steps)
        if code == ensembles.UNFINISHED:
            cursor[TAKEN] += 1
            return
        _keep(lanes, l, runs)
        runs.codes[r] = code
        _free(lanes, l)


# ---- states at times within a step ---------------------------------------------------------------------------


@kernel
def _pass(tableau, lanes, l, passed, cursor, runs, times):
    """Save the state at the end of the step in this lane, if it is asked for, and copy the step aside for times within."""
    clock, counters, aside = lanes.clock, lanes.counters, passed.lanes
    r, first, t, size = counters[RUN, l], counters[SAVED, l], clock[T_NEW, l], lanes.theta.shape[0]
    place = first
    while place < times.size and times[place] < t:
        place += 1
    if place > first:
        k = cursor[ASIDE]
        passed.counters[WHOSE, k], passed.counters[PLACE, k], passed.counters[TIMES, k] = (
            r,
            first,
            place - first,
        )
        passed.clock[BEGAN, k], passed.clock[STEP, k] = clock[T, l], clock[H, l]
        passed.clock[BEFORE, k], passed.clock[TOLERANCE, k] = clock[DISSIPATION, l], clock[ATOL, l]
        for i in range(size):
            aside.theta[i, k] = lanes.theta[i, l]
        for s in range(tableau.sizes[0]):
            for i in range(size):
                aside.stages[s, i, k] = lanes.stages[s, i, l]
            aside.slopes[s, k] = lanes.slopes[s, l]
        cursor[ASIDE] += 1
        counters[GRADIENTS, l] += tableau.sizes[1] + 1
    while place < times.size and times[place] == t:
        for i in range(size):
            runs.theta[r, place, i] = lanes.trial[i, l]
        runs.dissipation[r, place] = clock[DISSIPATION_NEW, l]
        place += 1
    counters[SAVED, l] = place
    clock[NEXT, l] = times[place] if place < times.size else np.inf


@kernel
def _interpolate(tableau, passed):
    """States, to ``trial``, and dissipation at the times in row X of the steps that were copied aside."""
    clock, aside = passed.clock, passed.lanes
    stages, degree = tableau.interpolant.shape
    began, h, x, reached, width = clock[BEGAN], clock[STEP], clock[X], clock[REACHED], clock.shape[1]
    for k in range(width):
        x[k] = (x[k] - began[k]) / h[k]
        reached[k] = clock[BEFORE, k]
    for j in range(stages):
        weight, slope = aside.coefficient[j], aside.slopes[j]
        for k in range(width):
            weight[k] = 0.0
        for d in range(degree - 1, -1, -1):
            c = tableau.interpolant[j, d]
            for k in range(width):
                weight[k] = (weight[k] + c) * x[k]
        for k in range(width):
            weight[k] = h[k] * weight[k]
            reached[k] += weight[k] * slope[k]
    _combine(aside.trial, aside.theta, aside.coefficient, aside.stages, tableau.every, 0, stages)


@kernel
def _depart(tableau, passed, rtol):
    """Departure of the interpolants from the flow, in tolerances, at x and the states in ``trial``."""
    clock, aside = passed.clock, passed.lanes
    stages, degree = tableau.interpolant.shape
    x, h, lack, atol = clock[X], clock[STEP], clock[LACK], clock[TOLERANCE]
    rows, width = aside.trial.shape
    for j in range(stages):
        weight = aside.coefficient[j]
        for k in range(width):
            weight[k] = 0.0
        for d in range(degree - 1, -1, -1):
            c = (d + 1) * tableau.interpolant[j, d]
            for k in range(width):
                weight[k] = weight[k] * x[k] + c
    _combine(aside.gradient, aside.gradient, aside.coefficient, aside.stages, tableau.every, 0, stages)
    for k in range(width):
        lack[k] = 0.0
    for i in range(rows):
        for k in range(width):
            scaled = aside.gradient[i, k] / (atol[k] + rtol * abs(aside.trial[i, k]))
            lack[k] += scaled * scaled
    for k in range(width):
        lack[k] = abs(h[k]) * np.sqrt(lack[k] / rows)


@kernel
def _step_of_its_own(gradient, data, dims, work, tableau, one, passed, k, runs, t, place, rtol, atol):
    """Save the state at a time within a step whose interpolant departs from the flow."""
    aside, r = passed.lanes, passed.counters[WHOSE, k]
    one.clock[explicit.T_BEFORE], one.clock[explicit.H_BEFORE] = passed.clock[BEGAN, k], passed.clock[STEP, k]
    one.clock[explicit.DISSIPATION_BEFORE] = passed.clock[BEFORE, k]
    one.counters[explicit.PROBED], one.counters[explicit.FRESH] = explicit.DEPARTS, explicit.SETTLED
    one.counters[explicit.GRADIENTS] = 0
    for i in range(one.theta.size):
        one.theta_before[i], one.stages[0, i] = aside.theta[i, k], aside.stages[0, i, k]
    one.slopes[0] = aside.slopes[0, k]
    atol[:] = passed.clock[TOLERANCE, k]
    runs.dissipation[r, place] = explicit.state_at(
        gradient, data, dims, work, tableau, one, t, runs.theta[r, place], rtol, atol
    )
    runs.counts[r, 2] += one.counters[explicit.GRADIENTS]


@kernel
def _save(lane_gradient, gradient, data, dims, work, tableau, one, passed, cursor, runs, times, rtol, atol):
    """Save the states within the steps that were copied aside."""
    clock, counters, aside, index = passed.clock, passed.counters, passed.lanes, tableau.source
    first, h, width = tableau.sizes[0], clock[STEP], clock.shape[1]
    most = 0
    for k in range(cursor[ASIDE]):
        most = max(most, counters[TIMES, k])
    if most == 0:
        return
    for r in range(first, first + tableau.sizes[1]):
        _weigh(aside.coefficient, h, tableau.weight, r, tableau.terms[r])
        _combine(aside.trial, aside.theta, aside.coefficient, aside.stages, index, r, tableau.terms[r])
        _field(lane_gradient, data, dims, aside, r)
    for k in range(width):
        clock[X, k] = clock[BEGAN, k] + tableau.probe[0] * h[k]
    _interpolate(tableau, passed)
    _gradients(lane_gradient, data, dims, aside)
    _depart(tableau, passed, rtol)
    for n in range(most):
        for k in range(width):
            clock[X, k] = clock[BEGAN, k]
        for k in range(cursor[ASIDE]):
            if n < counters[TIMES, k]:
                clock[X, k] = times[counters[PLACE, k] + n]
        _interpolate(tableau, passed)
        for k in range(cursor[ASIDE]):
            if n >= counters[TIMES, k]:
                continue
            run, place = counters[WHOSE, k], counters[PLACE, k] + n
            if clock[LACK, k] <= explicit.TRUSTED:  # false for NaN
                for i in range(aside.trial.shape[0]):
                    runs.theta[run, place, i] = aside.trial[i, k]
                runs.dissipation[run, place] = clock[REACHED, k]
            else:
                _step_of_its_own(
                    gradient,
                    data,
                    dims,
                    work,
                    tableau,
                    one,
                    passed,
                    k,
                    runs,
                    times[place],
                    place,
                    rtol,
                    atol,
                )
    cursor[ASIDE] = 0


# ---- the loop ------------------------------------------------------------------------------------------------


@kernel
def advance(
    lane_gradient,
    gradient,
    data,
    dims,
    work,
    tableau,
    one,
    lanes,
    passed,
    runs,
    times,
    cursor,
    end,
    rtol,
    atol,
    budget,
    max_steps,
):
    """Go on with the runs up to ``end``; comes back after about ``budget`` steps, with all that has been saved.

    Before that it comes back where a lane is free and more runs are to come, as ``cursor[MORE]`` says.
    ``one`` is the state of a single run, ``atol`` (P,) and ``work`` are its scratch.
    """
    width, room = lanes.theta.shape[1], passed.clock.shape[1]
    code = ensembles.PAUSED
    while True:
        if cursor[TAKEN] < width and cursor[NEXT_RUN] < end:
            for l in range(width):
                if lanes.counters[RUN, l] == FREE:
                    _fill(
                        gradient, data, dims, work, tableau, one, lanes, l, runs, cursor, end, times, rtol, atol,
                        max_steps,
                    )  # fmt: skip
        done = True
        if cursor[MORE] and cursor[TAKEN] < width:
            code = ROOM
        elif cursor[TAKEN] == 0:
            code = ensembles.FINISHED
        elif width > LEAST and 2 * cursor[TAKEN] <= width:
            code = NARROW
        else:
            done = budget <= 0
        if done or cursor[ASIDE] + width > room:
            _save(
                lane_gradient,
                gradient,
                data,
                dims,
                work,
                tableau,
                one,
                passed,
                cursor,
                runs,
                times,
                rtol,
                atol,
            )
        if done:
            break
        budget -= cursor[TAKEN]
        cursor[STEPS] += cursor[TAKEN]
        _attempt(lane_gradient, data, dims, tableau, lanes)
        row = tableau.terms.size - 2
        _estimate(tableau, lanes, row, rtol, HIGH)
        _estimate(tableau, lanes, row + 1, rtol, LOW)
        if _judge(tableau, lanes) > 0:
            for l in range(width):
                if lanes.counters[GOOD, l] == 1 and lanes.clock[T_NEW, l] >= lanes.clock[NEXT, l]:
                    _pass(tableau, lanes, l, passed, cursor, runs, times)
        if _settle(tableau, lanes, max_steps) == 0:
            continue
        for l in range(width):
            if lanes.counters[RUN, l] == FREE:
                continue
            why = _verdict(lanes, l, times, max_steps)
            if why != ensembles.UNFINISHED:
                _keep(lanes, l, runs)
                runs.codes[lanes.counters[RUN, l]] = why
                _free(lanes, l)
                cursor[TAKEN] -= 1
    for l in range(width):
        if lanes.counters[RUN, l] != FREE:
            _keep(lanes, l, runs)
    return code
