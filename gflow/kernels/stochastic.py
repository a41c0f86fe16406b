"""Stochastic gradient flow of a diagonal network of depth 2: the log-Euler scheme, one compiled, resumable loop.

In the coordinates of ``logarithms``, without a unit of their own:

    dnu = 2 factor (X beta - y) dt - 2 sqrt(step size * factor * L) dB,      dA = L dt,

with one Brownian motion a sample, and Ito's correction takes ``shrink`` * A off all logarithms.  What the scheme
freezes over a step are X beta and L; how the parameters follow from nu and A is exact.

The normal numbers are those of Box and Muller from the sequence of ``descent``: those of a step depend on the seed
and the number of the step alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflow.kernels import descent, logarithms
from gflow.kernels.abi import kernel
from gflow.kernels.descent import FINISHED, NON_FINITE, PAUSED

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

__all__ = ["FINISHED", "NON_FINITE", "PAUSED", "SAVED", "STEP", "Noise", "State", "advance", "new_state"]

# Places in State.cursor.
STEP, SAVED = range(2)


class State(NamedTuple):
    """All that the loop needs to go on."""

    cursor: Ints
    now: Floats  # (n + 1,): nu and A
    before: Floats  # (n + 1,): the same a step ago
    coarsest: Floats  # (2,): the longest step of nu so far, and the largest trace of its linearised drift
    normals: Floats  # (n + 1,) scratch


class Noise(NamedTuple):
    """What a step does besides the flow."""

    seed: NDArray[np.uint64]  # (1,)
    step_size: float  # of the descent that is modelled
    dt: float
    logs: Floats  # (2 d,): the logarithms of the pair at the start
    shrink: Floats  # (d,)
    stiffness: Floats  # (d,): by which the squares of the pair go into the trace


def new_state(now: Floats, step: int, coarsest: Floats) -> State:
    """The state in which a run starts."""
    return State(np.array([step, 0]), now.copy(), now.copy(), coarsest.copy(), np.empty(now.size))


@kernel
def _draw(seed, step, n, out):
    """Independent standard normal numbers of a step, n of them or one more."""
    pairs = (n + 1) // 2
    for j in range(pairs):
        place = 2 * (step * pairs + j)
        first = (np.float64(descent.bits(seed, place) >> np.uint64(11)) + 1.0) * 2.0**-53  # never 0
        angle = 2.0 * np.pi * np.float64(descent.bits(seed, place + 1) >> np.uint64(11)) * 2.0**-53
        length = np.sqrt(-2.0 * np.log(first))
        out[2 * j], out[2 * j + 1] = length * np.cos(angle), length * np.sin(angle)


@kernel
def advance(data, dims, work, state, noise, at, saved, budget):
    """Go on until all steps in ``at`` are saved; comes back after ``budget`` steps.

    Or where X beta is not finite: the state is then that of the step before.  Such states are not saved.
    """
    cursor, now, normals = state.cursor, state.now, state.normals
    d, n, factor, dt = dims[1], dims[2], data[0], noise.dt
    labels, outputs = 4 + n * d, 3 * d
    starts = labels + n
    while True:
        step = cursor[STEP]
        for i in range(d):
            fallen = noise.shrink[i] * now[n]
            data[starts + i] = noise.logs[i] - fallen
            data[starts + d + i] = noise.logs[d + i] - fallen
        logarithms.outputs(now, data, dims, work)
        loss = 0.0
        for i in range(n):
            work[outputs + i] -= data[labels + i]
            loss += work[outputs + i] * work[outputs + i]
        loss *= factor
        if not np.isfinite(loss):
            cursor[STEP] = max(step - 1, 0)
            for i in range(n + 1):
                now[i] = state.before[i]
            return NON_FINITE
        while cursor[SAVED] < at.size and at[cursor[SAVED]] == step:
            for i in range(n + 1):
                saved[cursor[SAVED], i] = now[i]
            cursor[SAVED] += 1
        if cursor[SAVED] == at.size:
            return FINISHED
        if budget <= 0:
            return PAUSED
        trace = 0.0
        for i in range(d):
            trace += noise.stiffness[i] * (work[d + i] + work[2 * d + i])
        state.coarsest[1] = max(state.coarsest[1], trace)
        _draw(noise.seed[0], step, n, normals)
        size = 2.0 * np.sqrt(noise.step_size * factor * loss * dt)
        state.coarsest[0] = max(state.coarsest[0], 2.0 * dt * np.sqrt(factor * loss) + size)
        for i in range(n):
            state.before[i] = now[i]
            now[i] += 2.0 * factor * dt * work[outputs + i] - size * normals[i]
        state.before[n] = now[n]
        now[n] += dt * loss
        cursor[STEP] += 1
        budget -= 1
