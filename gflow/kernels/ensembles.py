"""Many runs one after another, in one compiled loop with one set of buffers.

Each run goes through the very machine code of the single one: its loop comes as a first-class function
(``abi.pointer``), so that no optimisation across the call can change a bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflow.kernels import descent, explicit
from gflow.kernels.abi import kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Why a loop came back.
FINISHED, PAUSED = range(2)
# What a run's code says until its loop has given one; and where something else knows how it ended.
UNFINISHED, ELSEWHERE = -1, -2
# Places in the cursor over the runs: the run that is under way, and whether it has begun.
RUN, BEGUN = range(2)


class Flows(NamedTuple):
    """Where R runs of the flow begin, and what comes of them."""

    starts: Floats  # (R, P)
    atols: Floats  # (R,)
    theta: Floats  # (R, T, P)
    dissipation: Floats  # (R, T)
    saved: Ints  # (R,): how many of the T times have been reached
    last_t: Floats  # (R,): how far each run has come
    last: Floats  # (R, P)
    last_dissipation: Floats  # (R,)
    counts: Ints  # (R, 3): accepted, rejected, gradients
    codes: Ints  # (R,)


class Descents(NamedTuple):
    """Where R descents begin, and what comes of them."""

    starts: Floats  # (R, P)
    sizes: Floats  # (R or 1, n_steps or 1)
    seeds: NDArray[np.uint64]  # (R,)
    theta: Floats  # (R, S, P)
    saved: Ints  # (R,)
    last: Floats  # (R, P)
    moments: Floats  # (R, K P)
    counts: Ints  # (R, 1): steps
    codes: Ints  # (R,)


@kernel
def restart(state, work, theta0):
    """Make a state one in which an integration starts at t = 0."""
    state.clock[:] = 0.0
    state.clock[explicit.ERROR_BEFORE] = 1.0
    state.counters[:] = 0
    for i in range(theta0.size):
        state.theta[i] = theta0[i]
        state.theta_before[i] = theta0[i]
    state.stages[:] = 0.0
    state.slopes[:] = 0.0
    state.weights[:] = 0.0
    work[:] = 0.0


@kernel
def flows(
    advance,
    gradient,
    data,
    dims,
    work,
    tableau,
    state,
    output,
    runs,
    place,
    end,
    rtol,
    atol,
    budget,
    max_steps,
):
    """Go on with the runs up to ``end``; comes back after about ``budget`` steps."""
    cursor, counters, clock = output.cursor, state.counters, state.clock
    while place[RUN] < end:
        r = place[RUN]
        if not place[BEGUN]:
            restart(state, work, runs.starts[r])
            cursor[:] = 0
            atol[:] = runs.atols[r]
            place[BEGUN] = 1
        before = counters[explicit.ACCEPTED] + counters[explicit.REJECTED]
        one = explicit.Output(
            cursor, output.times, runs.theta[r], runs.dissipation[r], output.history, output.dense_times,
            output.dense,
        )  # fmt: skip
        code = advance(gradient, data, dims, work, tableau, state, one, rtol, atol, budget, max_steps)
        budget -= counters[explicit.ACCEPTED] + counters[explicit.REJECTED] - before
        cursor[explicit.HISTORY] = 0  # steps are not kept
        if code == explicit.BLOCK_FULL:
            continue
        runs.saved[r], runs.last_t[r] = cursor[explicit.SAVED], clock[explicit.T]
        runs.last_dissipation[r] = clock[explicit.DISSIPATION]
        for i in range(state.theta.size):
            runs.last[r, i] = state.theta[i]
        runs.counts[r, 0], runs.counts[r, 1] = counters[explicit.ACCEPTED], counters[explicit.REJECTED]
        runs.counts[r, 2] = counters[explicit.GRADIENTS]
        if code == explicit.PAUSED:
            return PAUSED
        runs.codes[r] = code
        place[RUN], place[BEGUN] = r + 1, 0
    return FINISHED


@kernel
def descents(
    advance, gradient, data, dims, work, state, rule, batches, runs, place, end, every, n_steps, budget
):
    """Go on with the descents up to ``end``; comes back after about ``budget`` steps."""
    cursor = state.cursor
    while place[RUN] < end:
        r = place[RUN]
        if not place[BEGUN]:
            cursor[descent.STEP], cursor[descent.SAVED], cursor[descent.SHUFFLED] = 0, 0, -1
            for i in range(state.theta.size):
                state.theta[i] = runs.starts[r, i]
            state.moments[:] = 0.0
            work[:] = 0.0
            batches.seed[0] = runs.seeds[r]
            place[BEGUN] = 1
        before = cursor[descent.STEP]
        sizes = runs.sizes[r % runs.sizes.shape[0]]
        code = advance(
            gradient, data, dims, work, state, rule, batches, sizes, runs.theta[r], 0, every, n_steps, budget
        )
        budget -= cursor[descent.STEP] - before
        runs.saved[r], runs.counts[r, 0] = cursor[descent.SAVED], cursor[descent.STEP]
        for i in range(state.theta.size):
            runs.last[r, i] = state.theta[i]
        for i in range(state.moments.size):
            runs.moments[r, i] = state.moments[i]
        if code == descent.PAUSED:
            return PAUSED
        runs.codes[r] = code
        place[RUN], place[BEGUN] = r + 1, 0
    return FINISHED


@kernel
def default_atol(theta, blocks, rtol, least):
    """rtol * 1e-3 * the smallest non-zero root mean square over the blocks, and at least ``least``.

    A row of ``blocks`` is the start, stop and step of a slice.
    """
    smallest = np.inf
    for b in range(blocks.shape[0]):
        start, stop, step = blocks[b, 0], blocks[b, 1], blocks[b, 2]
        largest, square, count = 0.0, 0.0, 0
        for q in range(start, stop, step):
            largest = max(largest, abs(theta[q]))
        if largest > 0.0:
            for q in range(start, stop, step):
                square += (theta[q] / largest) ** 2  # the squares themselves may underflow
                count += 1
            smallest = min(smallest, largest * np.sqrt(square / count))
    return max(rtol * 1e-3 * (smallest if smallest < np.inf else 1.0), least)


@kernel
def default_atols(thetas, blocks, rtol, least, out):
    """That of each row of ``thetas``."""
    for r in range(thetas.shape[0]):
        out[r] = default_atol(thetas[r], blocks, rtol, least)
