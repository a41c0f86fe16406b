"""Gradient descent, heavy ball and Adam, on the whole loss or on batches: one compiled, resumable loop.

What is random is the choice of the batches.  Its numbers are those of splitmix64 (Steele, Lea, Flood,
OOPSLA 2014), whose i-th number is a function of the seed and of i alone: the batch of a step depends on
the seed and on the number of the step, wherever a run was interrupted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflow.kernels.abi import kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Why the loop came back.
FINISHED, PAUSED, NON_FINITE = range(3)
# Optimizers.
GD, MOMENTUM, ADAM = range(3)
MOMENTS = (0, 1, 2)  # how many numbers each carries along for every parameter
# Places in State.cursor: the step that is next, the number of saved states, the step up to which
# ``Batches.order`` has been shuffled.
STEP, SAVED, SHUFFLED = range(3)


class State(NamedTuple):
    """All that the loop needs to go on."""

    cursor: Ints
    theta: Floats  # (P,)
    moments: Floats  # (P,) velocity of the heavy ball; (2 P,) means of g and of g^2 of Adam; (0,) of neither
    gradient: Floats  # (P,) scratch


class Rule(NamedTuple):
    """What a step does with its gradient."""

    optimizer: int
    beta: float  # momentum, or Adam's first
    beta_square: float
    eps: float


class Batches(NamedTuple):
    """The samples, and how batches are taken from them."""

    size: int  # 0: every step takes the whole loss
    replacement: int
    seed: NDArray[np.uint64]  # (1,)
    source: Floats  # the packed samples
    table: Ints  # (arrays, 4): see _gather
    order: Ints  # (n,) scratch: the samples in this epoch's order


def new_state(theta0: Floats, first: int, optimizer: int) -> State:
    """The state in which a descent starts."""
    moments = np.zeros(MOMENTS[optimizer] * theta0.size)
    return State(np.array([first, 0, -1]), theta0.copy(), moments, np.empty(theta0.size))


@kernel
def bits(seed, counter):
    """The 64 random bits that have this place in the sequence of a seed."""
    z = seed + np.uint64(counter) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def _below(seed, counter, n):
    """The random whole number in [0, n) that has this place in the sequence of a seed."""
    return min(np.int64(np.float64(bits(seed, counter) >> np.uint64(11)) * 2.0**-53 * n), n - 1)


@kernel
def draw(seed, step, shuffled, size, replacement, order):
    """Choose the batch of a step; returns where its ``size`` samples stand in ``order``.

    Without replacement each epoch of n // size steps goes through a fresh random order of the samples,
    made as it is used (Fisher and Yates); the n % size last of it sit the epoch out.
    """
    n = order.size
    if replacement:
        for c in range(size):
            order[c] = _below(seed, step * size + c, n)
        return 0
    begin = step - step % (n // size)
    if shuffled != step or step == begin:
        for i in range(n):
            order[i] = i
        shuffled = begin
    for s in range(shuffled, step + 1):
        for c in range(size):
            i = (s - begin) * size + c
            j = i + _below(seed, s * size + c, n - i)
            order[i], order[j] = order[j], order[i]
    return (step - begin) * size


@kernel
def draw_all(seed, size, replacement, order, out):
    """Write the samples of the batches of all steps from the first to ``out`` (steps, size)."""
    for step in range(out.shape[0]):
        place = draw(seed, step, step - 1 + min(step, 1), size, replacement, order)
        for c in range(size):
            out[step, c] = order[place + c]


@kernel
def _gather(source, table, order, place, size, out):
    """Copy a batch's samples to ``out``.

    Each row of the table is an array of the packed samples: where it begins in ``source`` and in ``out``,
    how many numbers it has for each sample, and whether these stand in a column, (numbers, n), or in a row.
    """
    n = order.size
    for a in range(table.shape[0]):
        here, there, numbers = table[a, 0], table[a, 1], table[a, 2]
        if table[a, 3]:
            for l in range(numbers):
                for c in range(size):
                    out[there + l * size + c] = source[here + l * n + order[place + c]]
        else:
            for c in range(size):
                for l in range(numbers):
                    out[there + c * numbers + l] = source[here + order[place + c] * numbers + l]


@kernel
def _heavy_ball(theta, v, g, beta, h):
    """v <- beta v - h g, theta <- theta + v; False, and nothing changed, if that is not finite."""
    total = 0.0
    for i in range(theta.size):
        total += abs(theta[i] + (beta * v[i] - h * g[i]))
    if not np.isfinite(total):
        return False
    for i in range(theta.size):
        v[i] = beta * v[i] - h * g[i]
        theta[i] += v[i]
    return True


@kernel
def _adam(theta, moments, g, step, rule, h):
    """Adam's step with the correction of the bias; False, and nothing changed, if it is not finite."""
    size, first, second = theta.size, 1.0 - rule.beta, 1.0 - rule.beta_square
    debias, debias_square = 1.0 - rule.beta ** (step + 1), 1.0 - rule.beta_square ** (step + 1)
    total = 0.0
    for i in range(size):
        m = rule.beta * moments[i] + first * g[i]
        v = rule.beta_square * moments[size + i] + second * (g[i] * g[i])
        total += abs(theta[i] - h * (m / debias) / (np.sqrt(v / debias_square) + rule.eps)) + v
    if not np.isfinite(total):
        return False
    for i in range(size):
        m = rule.beta * moments[i] + first * g[i]
        v = rule.beta_square * moments[size + i] + second * (g[i] * g[i])
        moments[i], moments[size + i] = m, v
        theta[i] -= h * (m / debias) / (np.sqrt(v / debias_square) + rule.eps)
    return True


@kernel
def _plain(theta, g, h):
    """theta <- theta - h g; False, and nothing changed, if that is not finite."""
    total = 0.0
    for i in range(theta.size):
        total += abs(theta[i] - h * g[i])
    if not np.isfinite(total):
        return False
    for i in range(theta.size):
        theta[i] -= h * g[i]
    return True


@kernel
def advance(gradient, data, dims, work, state, rule, batches, sizes, saved, first, every, n_steps, budget):
    """Descend from the step in the cursor to ``n_steps``; save each step first + multiple of ``every``, and the last.

    ``sizes`` holds the size of each step, or of all.  With batches, ``data`` and ``dims`` are those of one
    batch, and are filled here.  Comes back after ``budget`` steps, or where the next state is not finite;
    the state is then the last finite one.
    """
    cursor, theta, moments, g = state.cursor, state.theta, state.moments, state.gradient
    seed, source, table, order = batches.seed, batches.source, batches.table, batches.order
    size = theta.size
    while True:
        step = cursor[STEP]
        if cursor[SAVED] < saved.shape[0] and step == min(first + cursor[SAVED] * every, n_steps):
            for i in range(theta.size):
                saved[cursor[SAVED], i] = theta[i]
            cursor[SAVED] += 1
        if step == n_steps:
            return FINISHED
        if budget <= 0:
            return PAUSED
        if batches.size > 0:
            place = draw(seed[0], step, cursor[SHUFFLED], batches.size, batches.replacement, order)
            _gather(source, table, order, place, batches.size, data)
            cursor[SHUFFLED] = step + 1
        g[size - 1] = np.nan  # stays, if a user's kernel raises
        gradient(0.0, theta, data, dims, work, g)
        h = sizes[step] if sizes.size > 1 else sizes[0]
        if rule.optimizer == GD:
            finite = _plain(theta, g, h)
        elif rule.optimizer == MOMENTUM:
            finite = _heavy_ball(theta, moments, g, rule.beta, h)
        else:
            finite = _adam(theta, moments, g, step, rule, h)
        if not finite:
            return NON_FINITE
        cursor[STEP] += 1
        budget -= 1
