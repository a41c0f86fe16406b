"""The exact flow of a two-layer ReLU network: events, sliding, and no chatter.

The gradient jumps where a neuron's hyperplane w.u = 0 passes a sample.  Between events the network keeps a
pattern in which its field is smooth, and the explicit loop takes its steps there.  After each step the
switching functions are looked at; the earliest that changes sign cuts the step short, and the neuron that it
belongs to is decided anew.

Switching functions of neurons off their kinks are heights w.u, linear in the parameters: on the interpolant of
a step they are polynomials, whose roots cost next to nothing.  Those of sliding neurons are the shares s that
the samples on the kink take in the gradient: a gradient each time they are looked at, so that inside of a step
this is done only where a share is near an end of its range for the speed at which it changes.

A neuron's velocity at a kink is a convex combination of its two one-sided limits: with b+ and b- the pulls
along u on either side, b- + s (b+ - b-), s in [0, 1].  Where b+ < b- the kink attracts, and all kinks of the
neuron together take the s for which the velocity is shortest: its conditions for a minimum are those of the
differential inclusion (s = 1: leaves to the active side; s = 0: to the inactive; between: slides).  Where
b+ > b- the kink repels; a neuron that arrives passes through, one that stands there may leave to either
side, and the table says so.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflow.kernels import explicit, relu
from gflow.kernels.abi import kernel
from gflow.kernels.explicit import (
    ACCEPTED,
    DISSIPATION,
    EXTRA_DONE,
    FRESH,
    GRADIENTS,
    H_BEFORE,
    HISTORY,
    MOVED,
    PAUSED,
    T_BEFORE,
    H,
    T,
)  # fmt: skip

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Why the loop came back, beyond the explicit loop's reasons.
TABLE_FULL, AT_ZERO, STUCK = range(10, 13)

# Kinds of events, seen from the first sample of the hyperplane.
ACTIVATE, DEACTIVATE, SLIDE, LEAVE_ACTIVE, LEAVE_INACTIVE, REST, NOT_UNIQUE = range(7)

KINDS = ("activate", "deactivate", "slide", "leave_active", "leave_inactive", "rest", "not_unique")

# Modes of a neuron at a hyperplane: the signs of w.u, sliding, or resting on it without being pushed.
PLUS, MINUS, SLIDING, RESTING = 1, -1, 0, 2
# In Pattern.arrived: the neuron is not on this hyperplane.
ELSEWHERE = 9

# Places in Pattern.numbers.
EVENTS, REPEATS, WATCHED, ZERO_NEURON, BEFORE = range(5)
# Places in Pattern.scales: the largest derivative of the loss by an output so far; how exact it is, relatively; heights
# below this are nothing; when events began to crowd.
STEEPEST, EXACTNESS, NOTHING, CROWDED = range(4)
# The row of trial shares.
TRIAL = 2

# Parts of a step at which a switching function is looked at, when it may have changed sign and back.
_NODES = 5
# Parts of a step in which a height that ends beyond the kink is taken to cross it once, and the shortest looked at.
_MONOTONE, _FINEST = 2.0**-3, 2.0**-20
_BINOMIAL = np.array([[math.comb(n, k) for k in range(9)] for n in range(9)], dtype=np.float64)
ROUNDING = 3e-14
# Margin of a share, and how far one may go within a step if it is not known how fast it changes.
_SHARE_MARGIN = 1e-11
_SHARE_CHANGE = 0.1


class Pattern(NamedTuple):
    """The discrete part of the state, and room to work in.  Two rows: before and after the last step."""

    mode: Ints  # (m, planes)
    owner: Ints  # (m, d): the planes whose normals span the basis in ``work``
    numbers: Ints
    table: Floats  # (E, 4): time, neuron, sample, kind
    heights: Floats  # (2, m * planes)
    share: Floats  # (3, m * planes): the s of sliding planes; the third row is for trials
    rate: Floats  # (m * planes,): |ds/dt| of the last step; negative if unknown
    slack: Floats  # (m * planes,): how far out of its range a share has to be to have left it
    scales: Floats  # see the places above
    force: Floats  # (n,)
    node: Floats  # (1, P)
    small: Floats  # scratch of a decision
    polynomial: Floats  # (2, 8): of a height, and moved to a part of the step
    looked: Floats  # (2,): the part of the last step whose gradient is in ``work``, and the dissipation there
    touched: Ints  # (m,)
    arrived: Ints  # (planes,) of the neuron to be decided, see decide()
    forced: Ints  # (planes,)
    watched: Ints  # the functions j * planes + p whose earliest root is sought


def new_pattern(dims: Ints, size: int, exactness: float, nothing: float) -> Pattern:
    """A pattern to be filled by :func:`begin`: forces are known to ``exactness`` of the largest, heights to ``nothing``."""
    d, n, m, planes = int(dims[1]), int(dims[3]), int(dims[4]), int(dims[7])
    functions = m * planes
    return Pattern(
        np.zeros((m, planes), dtype=np.int64), np.zeros((m, d), dtype=np.int64), np.zeros(5, dtype=np.int64),
        np.empty((_most_events(dims) + 1024, 4)), np.zeros((2, functions)), np.full((3, functions), 0.5),
        np.full(functions, -1.0), np.zeros(functions), np.array([0.0, exactness, nothing, 0.0]), np.zeros(n),
        np.zeros((1, size)), np.zeros(3 * planes + d), np.zeros((2, 8)), np.zeros(2),
        np.zeros(m, dtype=np.int64), np.zeros(planes, dtype=np.int64), np.zeros(planes, dtype=np.int64),
        np.zeros(functions, dtype=np.int64),
    )  # fmt: skip


@kernel
def _most_events(dims):
    """The most events that can happen at one time: two for each neuron and hyperplane."""
    return 2 * dims[4] * dims[7]


@kernel
def _slope(positive, coefficient, leak):
    """Slope of a sample on the positive or negative side of its hyperplane."""
    return 1.0 if positive == (coefficient > 0.0) else leak


@kernel
def _pulls(plane, force, data, dims):
    """Pulls of a hyperplane's samples on a neuron along its normal: on its positive and negative side."""
    n, first = dims[3], relu.coefficients_at(dims)
    members, starts = relu.PLANES + n, relu.PLANES + 2 * n
    plus, minus = 0.0, 0.0
    for q in range(dims[starts + plane], dims[starts + plane + 1]):
        i = dims[members + q]
        c, pull = data[first + i], force[i]
        plus += _slope(True, c, data[2]) * pull * c
        minus += _slope(False, c, data[2]) * pull * c
    return plus, minus


@kernel
def _apply(j, data, dims, work, pattern):
    """Write the slopes of neuron j and the basis of its sliding normals to ``work``."""
    mode = pattern.mode
    d, n, planes = dims[1], dims[3], dims[7]
    slopes, first, normals = relu.slopes_at(dims), relu.coefficients_at(dims), relu.normals_at(dims)
    for i in range(n):
        side = mode[j, dims[relu.PLANES + i]]
        c = data[first + i]
        if c == 0.0 or side == SLIDING or side == RESTING:
            work[slopes + j * n + i] = 0.0
        else:
            work[slopes + j * n + i] = _slope(side == PLUS, c, data[2])
    kept, basis = 0, relu.basis_at(dims) + j * d * d
    for p in range(planes):
        if (mode[j, p] != SLIDING and mode[j, p] != RESTING) or kept == d:
            continue
        row = basis + kept * d
        for l in range(d):
            work[row + l] = data[normals + p * d + l]
        for _ in range(2):  # twice is enough for orthogonality to rounding
            for q in range(kept):
                along = 0.0
                for l in range(d):
                    along += work[row + l] * work[basis + q * d + l]
                for l in range(d):
                    work[row + l] -= along * work[basis + q * d + l]
        size = 0.0
        for l in range(d):
            size += work[row + l] ** 2
        size = np.sqrt(size)
        if size > 1e-10:
            for l in range(d):
                work[row + l] /= size
            pattern.owner[j, kept] = p
            kept += 1
    work[relu.sliding_at(dims) + j] = kept


@kernel
def _land(j, theta, dims, work):
    """Take rounding off neuron j: no component along its sliding normals."""
    d, basis = dims[1], relu.basis_at(dims) + j * dims[1] * dims[1]
    for _ in range(2):
        for q in range(int(work[relu.sliding_at(dims) + j])):
            along = 0.0
            for l in range(d):
                along += work[basis + q * d + l] * theta[j * d + l]
            for l in range(d):
                theta[j * d + l] -= along * work[basis + q * d + l]


@kernel
def _rest_velocity(j, theta, data, dims, mode, force, out):
    """Velocity of neuron j without what its kinks pull: from the samples off their kinks, and the decay."""
    d, n = dims[1], dims[3]
    first, normals = relu.coefficients_at(dims), relu.normals_at(dims)
    for l in range(d):
        out[l] = -data[1] * theta[j * d + l]
    for i in range(n):
        p, c = dims[relu.PLANES + i], data[first + i]
        side = mode[j, p]
        if c == 0.0 or side == SLIDING or side == RESTING:
            continue
        pull = _slope(side == PLUS, c, data[2]) * force[i] * c
        for l in range(d):
            out[l] += pull * data[normals + p * d + l]


@kernel
def _outer_size(j, theta, dims):
    """Norm of neuron j's outer weights."""
    square = 0.0
    for a in range(dims[2]):
        square += theta[relu.outer_at(dims) + a * dims[4] + j] ** 2
    return np.sqrt(square)


@kernel
def _reach(plane, data, dims):
    """The largest size of a plane's samples."""
    n, largest = dims[3], 0.0
    members, starts = relu.PLANES + n, relu.PLANES + 2 * n
    for q in range(dims[starts + plane], dims[starts + plane + 1]):
        largest = max(largest, abs(data[relu.coefficients_at(dims) + dims[members + q]]))
    return largest


@kernel
def _note_steepest(dims, work, pattern):
    """Note the size of the loss's derivatives that the last gradient was made of."""
    first = relu.derivative_at(dims)
    for i in range(first, first + dims[2] * dims[3]):
        pattern.scales[STEEPEST] = max(pattern.scales[STEEPEST], abs(work[i]))


@kernel
def _shares(j, theta, data, dims, work, pattern, row):
    """The shares of neuron j on the planes that it stands on, at the state of the last gradient, to a row.

    What the planes pull keeps the velocity off their normals: with the normals N = L Q, Q the basis in
    ``work``, L^T y = Q g for the pulls y, g the gradient without them.  A plane that has turned repelling is
    out of its range, and so is one on which the neuron rests, once its samples or others pull it off.
    """
    d, planes, mode, force = dims[1], dims[7], pattern.mode, pattern.force
    basis, along, normals = (
        relu.basis_at(dims) + j * d * d,
        relu.along_at(dims) + j * d,
        relu.normals_at(dims),
    )
    kept, out = int(work[relu.sliding_at(dims) + j]), j * planes
    outer = _outer_size(j, theta, dims)
    noise = pattern.scales[STEEPEST] * pattern.scales[EXACTNESS] * outer
    if outer <= pattern.scales[NOTHING]:  # it has died away: nothing that it does is known
        for q in range(kept):
            at = out + pattern.owner[j, q]
            pattern.share[row, at] = 0.0 if mode[j, pattern.owner[j, q]] == RESTING else 0.5
            pattern.slack[at] = _SHARE_MARGIN
        return
    relu.forces(j, theta, dims, work, force)
    quiet = _quiet(force, data, dims)
    pull = pattern.small
    for q in range(kept - 1, -1, -1):
        own = pattern.owner[j, q]
        y, diagonal = work[along + q], 0.0
        for l in range(d):
            diagonal += work[basis + q * d + l] * data[normals + own * d + l]
        for r in range(q + 1, kept):
            inner = 0.0
            for l in range(d):
                inner += work[basis + q * d + l] * data[normals + pattern.owner[j, r] * d + l]
            y -= inner * pull[r]
        pull[q] = y / diagonal
        plus, minus = _pulls(own, force, data, dims)
        jump = plus - minus
        # both are small differences once the samples are fitted, of which errors of the steps are what is left
        slack = _SHARE_MARGIN
        if jump != 0.0:
            slack += noise * _reach(own, data, dims) / abs(jump)
        share = 0.5
        if mode[j, own] == RESTING:
            share = 0.0
            if jump < 0.0:
                share = (pull[q] - minus) / jump
                slack += 2.0 * quiet / abs(jump)
            elif jump > quiet or abs(pull[q] - minus) > 2.0 * quiet:
                share = 2.0
        elif jump < 0.0:
            share = (pull[q] - minus) / jump
        else:
            share = 2.0 if pull[q] > 0.5 * (plus + minus) else -1.0
        pattern.share[row, out + own] = share
        pattern.slack[out + own] = slack


@kernel
def _record(t, j, plane, kind, data, dims, pattern):
    """Add an event to the table, seen from the first sample of the plane."""
    n, first, numbers = dims[3], relu.coefficients_at(dims), pattern.numbers
    sample = dims[relu.PLANES + n + dims[relu.PLANES + 2 * n + plane]]
    if data[first + sample] < 0.0:
        if kind == ACTIVATE:
            kind = DEACTIVATE
        elif kind == DEACTIVATE:
            kind = ACTIVATE
        elif kind == LEAVE_ACTIVE:
            kind = LEAVE_INACTIVE
        elif kind == LEAVE_INACTIVE:
            kind = LEAVE_ACTIVE
    row = numbers[EVENTS]
    pattern.table[row, 0], pattern.table[row, 1] = t, j
    pattern.table[row, 2], pattern.table[row, 3] = sample, kind
    numbers[EVENTS] += 1


@kernel
def _shorten(arrived, forced, jump, share, g, data, dims):
    """Move the shares of attracting planes, by coordinates, to where the velocity g (d,) is shortest."""
    d, planes, normals = dims[1], dims[7], relu.normals_at(dims)
    for _ in range(10000):
        moved = 0.0
        for p in range(planes):
            if arrived[p] == ELSEWHERE or forced[p] != 0 or jump[p] >= 0.0:
                continue
            speed = 0.0
            for l in range(d):
                speed += g[l] * data[normals + p * d + l]
            new = min(1.0, max(0.0, share[p] - speed / jump[p]))
            change = new - share[p]
            if change != 0.0:
                for l in range(d):
                    g[l] += change * jump[p] * data[normals + p * d + l]
                share[p] = new
                moved = max(moved, abs(change))
        if moved < 1e-15:
            break


@kernel
def _along(plane, g, data, dims):
    """Component of g (d,) along a plane's normal."""
    speed, normals = 0.0, relu.normals_at(dims)
    for l in range(dims[1]):
        speed += g[l] * data[normals + plane * dims[1] + l]
    return speed


@kernel
def decide(t, j, theta, data, dims, work, pattern):
    """Give neuron j its modes at the planes on which it stands; record what changes.

    ``pattern.arrived[p]`` is the side from which it reached plane p (0: it slides, rests or begins there;
    ELSEWHERE: it is not there); ``pattern.forced[p]`` is a side that a share has released it to (0: none).
    """
    d, planes, mode, force = dims[1], dims[7], pattern.mode, pattern.force
    arrived, forced = pattern.arrived, pattern.forced
    normals, small = relu.normals_at(dims), pattern.small
    g, share = small[:d], small[d : d + planes]
    jump = small[d + planes : d + 2 * planes]
    before = small[d + 2 * planes : d + 3 * planes]
    for p in range(planes):
        before[p] = mode[j, p]
        if arrived[p] != ELSEWHERE:
            mode[j, p] = SLIDING  # so that the velocity of the rest leaves it out
    relu.forces(j, theta, dims, work, force)
    _rest_velocity(j, theta, data, dims, mode, force, g)
    quiet = _quiet(force, data, dims)
    for p in range(planes):
        if arrived[p] == ELSEWHERE:
            continue
        plus, minus = _pulls(p, force, data, dims)
        jump[p], share[p] = plus - minus, 0.0
        if forced[p] == PLUS or (jump[p] >= 0.0 and arrived[p] == MINUS):
            share[p] = 1.0
        elif jump[p] < 0.0 and forced[p] == 0:
            share[p] = 0.5
        for l in range(d):
            g[l] += (minus + share[p] * jump[p]) * data[normals + p * d + l]
    for _ in range(
        planes + 1
    ):  # the sides of repelling planes on which it stands depend on the shares, and these on them
        _shorten(arrived, forced, jump, share, g, data, dims)
        changed = False
        for p in range(planes):
            if arrived[p] != 0 or forced[p] != 0 or jump[p] < 0.0:
                continue
            down = _along(p, g, data, dims) - share[p] * jump[p]
            wanted = 1.0 if down >= -quiet and down + jump[p] > quiet else 0.0
            if wanted != share[p]:
                for l in range(d):
                    g[l] += (wanted - share[p]) * jump[p] * data[normals + p * d + l]
                share[p], changed = wanted, True
        if not changed:
            break
    for p in range(planes):
        if arrived[p] == ELSEWHERE:
            continue
        speed, unique = _along(p, g, data, dims), True
        if forced[p] != 0:
            mode[j, p] = forced[p]
        elif jump[p] < 0.0:
            if 1e-12 < share[p] < 1.0 - 1e-12:
                mode[j, p] = SLIDING
            elif abs(speed) <= quiet and share[p] <= 1e-12 and _no_pull(p, data, dims, pattern):
                mode[j, p] = RESTING
            else:
                mode[j, p] = PLUS if share[p] > 0.5 else MINUS
                if mode[j, p] == arrived[p]:  # back to where it came from, by rounding: it slides as yet
                    mode[j, p] = SLIDING
        elif arrived[p] == PLUS or arrived[p] == MINUS:
            mode[j, p] = -int(arrived[p])
            unique = speed * mode[j, p] >= -quiet
        else:  # stands on a kink that repels: velocities of either side
            down = speed - share[p] * jump[p]
            up = down + jump[p]
            if abs(up) <= quiet and abs(down) <= quiet:
                mode[j, p] = RESTING
            else:
                mode[j, p] = PLUS if share[p] > 0.5 else MINUS
                unique = down > quiet or up < -quiet
        if not unique:
            _record(t, j, p, NOT_UNIQUE, data, dims, pattern)
        if mode[j, p] != before[p]:
            if mode[j, p] == SLIDING:
                kind = SLIDE
            elif mode[j, p] == RESTING:
                kind = REST
            elif before[p] == SLIDING or before[p] == RESTING:
                kind = LEAVE_ACTIVE if mode[j, p] == PLUS else LEAVE_INACTIVE
            else:
                kind = ACTIVATE if mode[j, p] == PLUS else DEACTIVATE
            _record(t, j, p, kind, data, dims, pattern)
    _apply(j, data, dims, work, pattern)
    _land(j, theta, dims, work)


@kernel
def _quiet(force, data, dims):
    """Speeds along a normal below this are rounding."""
    scale = 0.0
    for i in range(dims[3]):
        scale += abs(force[i] * data[relu.coefficients_at(dims) + i])
    return 1e-10 * scale


@kernel
def _no_pull(plane, data, dims, pattern):
    """Whether the plane's inactive side pulls nothing, so that the neuron rests on it (slope 0)."""
    plus, minus = _pulls(plane, pattern.force, data, dims)
    return minus == 0.0


@kernel
def begin(gradient, t, theta, data, dims, work, out, pattern, near):
    """The pattern at a state; returns the first neuron on whose kinks the flow is not defined, or -1.

    A neuron stands on kinks whose height is below ``near`` of its size; ``out`` (P,) is for the gradient.
    """
    d, m, planes, mode = dims[1], dims[4], dims[7], pattern.mode
    work[0] = 0.0
    gradient(t, theta, data, dims, work, out)
    _note_steepest(dims, work, pattern)
    work[0] = 1.0
    heights = pattern.heights[pattern.numbers[BEFORE]]
    relu.heights(theta, data, dims, heights)
    for j in range(m):
        size = _size(j, theta, d)
        on_kink = False
        for p in range(planes):
            h = heights[j * planes + p]
            mode[j, p] = PLUS if h > 0.0 else MINUS
            pattern.arrived[p], pattern.forced[p] = ELSEWHERE, 0
            if abs(h) <= near * size:
                pattern.arrived[p] = 0
                on_kink = True
        if not on_kink:
            _apply(j, data, dims, work, pattern)
            continue
        if size == 0.0 and planes > 1:
            return j
        decide(t, j, theta, data, dims, work, pattern)
        if _tangled(j, dims, work, pattern):
            return j
    relu.heights(theta, data, dims, heights)
    return -1


@kernel
def _tangled(j, dims, work, pattern):
    """Whether neuron j stands on planes whose normals depend on each other: nothing is left of it between them."""
    standing = 0
    for p in range(dims[7]):
        if _stands(pattern.mode[j, p]):
            standing += 1
    return standing > int(work[relu.sliding_at(dims) + j])


@kernel
def resume(theta, data, dims, work, pattern):
    """Fill ``work`` and what follows from the modes and the state, which are given."""
    work[0] = 1.0
    for j in range(dims[4]):
        _apply(j, data, dims, work, pattern)
    relu.heights(theta, data, dims, pattern.heights[pattern.numbers[BEFORE]])


@kernel
def _size(j, theta, d):
    total = 0.0
    for l in range(d):
        total += theta[j * d + l] ** 2
    return np.sqrt(total)


@kernel
def _margin(size, pattern):
    """How far past a kink a neuron of this size has to be to have crossed it."""
    return ROUNDING * size + pattern.scales[NOTHING]


@kernel
def _tallest(j, row, dims, pattern):
    """The largest height of neuron j over all kinks: zero if nothing of it is left on the inputs."""
    tallest = 0.0
    for at in range(j * dims[7], (j + 1) * dims[7]):
        tallest = max(tallest, abs(pattern.heights[row, at]))
    return tallest


@kernel
def _stands(mode):
    return mode == SLIDING or mode == RESTING


@kernel
def _outside(mode, share):
    """How far a share is out of its range, [0, 1] or 0 for a neuron at rest; negative within it."""
    if mode == RESTING:
        return abs(share)
    return max(-share, share - 1.0)


@kernel
def _look_at(gradient, data, dims, work, tableau, state, pattern, x):
    """Have in ``work`` what the gradient leaves there at the part x of the last step, and in ``pattern.node`` the state."""
    node = pattern.node[0]
    if x >= 1.0:
        explicit.copy(state.theta, node)
    if pattern.looked[0] == x:
        return
    t = state.clock[T_BEFORE] + x * state.clock[H_BEFORE]
    if x < 1.0:
        pattern.looked[1] = explicit.interpolate(gradient, data, dims, work, tableau, state, t, node)
    gradient(t, node, data, dims, work, state.gradient)
    state.counters[GRADIENTS] += 1
    pattern.looked[0] = x


@kernel
def _height(h0, x, degree, polynomial):
    """Height, to its own side, at the part x of a step."""
    value = 0.0
    for k in range(degree - 1, -1, -1):
        value = (value + polynomial[0, k]) * x
    return h0 + value


@kernel
def _lowest(h0, low, width, degree, polynomial):
    """A lower bound of the height over a part of the step: its smallest Bernstein coefficient there."""
    moved = polynomial[1]
    constant, power = h0, 1.0
    for k in range(degree):
        power *= low
        constant += polynomial[0, k] * power
    scale = 1.0
    for k in range(1, degree + 1):  # in powers of (x - low) / width
        scale *= width
        value, power = 0.0, 1.0
        for i in range(k, degree + 1):
            value += _BINOMIAL[i, k] * polynomial[0, i - 1] * power
            power *= low
        moved[k - 1] = value * scale
    lowest = constant
    for j in range(1, degree + 1):
        value = constant
        for k in range(1, j + 1):
            value += _BINOMIAL[j, k] / _BINOMIAL[degree, k] * moved[k - 1]
        lowest = min(lowest, value)
    return lowest


@kernel
def _height_root(j, p, h0, h1, margin, reach, data, dims, tableau, state, pattern):
    """The first part of the step, up to ``reach``, at which neuron j has crossed plane p; 2 if it has not.

    ``h0``, ``h1`` are the heights at the ends of the step, positive on its side.  Parts of the step over which
    the height cannot reach zero are passed over; others are halved.
    """
    d, normals, polynomial = dims[1], relu.normals_at(dims), pattern.polynomial
    stages, degree = tableau.interpolant.shape
    side = 1.0 if pattern.mode[j, p] == PLUS else -1.0
    for k in range(degree):
        polynomial[0, k] = 0.0
    for r in range(stages):
        speed = 0.0
        for l in range(d):
            speed += state.stages[r, j * d + l] * data[normals + p * d + l]
        speed *= side * state.clock[H_BEFORE]
        for k in range(degree):
            polynomial[0, k] += tableau.interpolant[r, k] * speed
    low, width, below, above = 0.0, reach, min(-h0 - margin, 0.0), 0.0
    while True:
        if low >= reach:
            return 2.0
        if _lowest(h0, low, width, degree, polynomial) >= -margin:
            low += width
            width = min(2.0 * width, reach - low)
            continue
        high = low + width
        value = h1 if high >= 1.0 else _height(h0, high, degree, polynomial)
        if value < -margin and width <= _MONOTONE * reach:
            above = -value - margin
            break
        if width <= _FINEST * reach:  # it touches the kink at most
            low += width
            width = min(2.0 * width, reach - low)
            continue
        width *= 0.5
    high = low + width
    below = min(-_height(h0, low, degree, polynomial) - margin, 0.0)
    resolution = _resolution(state)
    for trial in range(200):
        if high - low <= resolution or above <= 0.0:
            break
        x = _between(trial, low, high, below, above, resolution)
        here = -_height(h0, x, degree, polynomial) - margin
        if here > 0.0:
            high, above = x, here
            below *= 0.5
        else:
            low, below = x, here
            above *= 0.5
    return high


@kernel
def _resolution(state):
    """The smallest part of the last step that its times resolve."""
    return 2.0 * np.finfo(np.float64).eps * max(1.0, abs(state.clock[T_BEFORE] / state.clock[H_BEFORE]))


@kernel
def _between(trial, low, high, below, above, resolution):
    """The next trial of the Illinois variant of regula falsi, with a bisection now and then."""
    if trial % 5 == 4 or above - below <= 0.0:
        return 0.5 * (low + high)
    x = high - above * (high - low) / (above - below)
    return min(max(x, low + 0.5 * resolution), high - 0.5 * resolution)


@kernel
def _first_crossing(gradient, data, dims, work, tableau, state, pattern):
    """The first part of the last step at which a neuron crosses a kink; 2 if none does.

    A neuron that ends on its side may have left it in between only if it moves far enough.
    """
    m, d, planes = dims[4], dims[1], dims[7]
    stages, last, h = state.stages, tableau.sizes[0] - 1, state.clock[H_BEFORE]
    first, after = pattern.heights[pattern.numbers[BEFORE]], pattern.heights[1 - pattern.numbers[BEFORE]]
    earliest = 2.0
    for j in range(m):
        furthest = 0.0
        for r in range(last + 1):
            square = 0.0
            for l in range(d):
                square += stages[r, j * d + l] ** 2
            furthest = max(furthest, square)
        furthest = 1.5 * abs(h) * np.sqrt(furthest)
        margin = _margin(max(_size(j, state.theta, d), _size(j, state.theta_before, d)), pattern)
        for p in range(planes):
            if _stands(pattern.mode[j, p]):
                continue
            side = 1.0 if pattern.mode[j, p] == PLUS else -1.0
            h0, h1 = side * first[j * planes + p], side * after[j * planes + p]
            if h1 >= -margin and h0 + h1 >= furthest:
                continue
            if not state.counters[EXTRA_DONE]:
                explicit.complete_stages(gradient, data, dims, work, tableau, state)
                if tableau.sizes[1] > 0:
                    pattern.looked[0] = -1.0
            x = _height_root(j, p, h0, h1, margin, min(earliest, 1.0), data, dims, tableau, state, pattern)
            earliest = min(earliest, x)
    return earliest


@kernel
def _worst(theta, data, dims, work, pattern):
    """The largest excess of the watched shares at the state of the last gradient."""
    planes, worst, done = dims[7], -1e300, -1
    for q in range(pattern.numbers[WATCHED]):
        at = pattern.watched[q]
        if at // planes != done:
            done = at // planes
            _shares(done, theta, data, dims, work, pattern, TRIAL)
        worst = max(
            worst, _outside(pattern.mode[done, at % planes], pattern.share[TRIAL, at]) - pattern.slack[at]
        )
    return worst


@kernel
def _first_release(gradient, data, dims, work, tableau, state, pattern, reach):
    """The first part of the last step, up to ``reach``, at which a share leaves its range; 2 if none does."""
    m, planes, h, numbers = dims[4], dims[7], state.clock[H_BEFORE], pattern.numbers
    before, after = pattern.share[numbers[BEFORE]], pattern.share[1 - numbers[BEFORE]]
    count = relu.sliding_at(dims)
    standing = False
    for j in range(m):
        if work[count + j] > 0.0:
            standing = True
    if not standing:
        return 2.0
    theta = pattern.node[0]
    _look_at(gradient, data, dims, work, tableau, state, pattern, reach)
    low, high, below, above = 0.0, 2.0, -1e300, 0.0
    numbers[WATCHED], inside = 0, False
    for j in range(m):
        if work[count + j] == 0.0:
            continue
        _shares(j, theta, data, dims, work, pattern, 1 - numbers[BEFORE])
        for at in range(j * planes, (j + 1) * planes):
            now = pattern.mode[j, at - j * planes]
            if not _stands(now):
                continue
            end, start = _outside(now, after[at]) - pattern.slack[at], _outside(now, before[at])
            change = _SHARE_CHANGE
            if pattern.rate[at] >= 0.0:
                change = max(abs(after[at] - before[at]), reach * h * pattern.rate[at])
            else:
                start = end
            out, near = end > 0.0, now == SLIDING and -max(end, start) < change
            if out:
                high, above = reach, max(above, end)
            elif near:  # it may have gone out and come back
                inside = True
            if out or near:
                below = max(below, start - pattern.slack[at])
                pattern.watched[numbers[WATCHED]] = at
                numbers[WATCHED] += 1
    if numbers[WATCHED] == 0:
        return 2.0
    if inside:
        for node in range(1, _NODES):
            x = reach * node / _NODES
            _look_at(gradient, data, dims, work, tableau, state, pattern, x)
            here = _worst(theta, data, dims, work, pattern)
            if here > 0.0:
                high, above = x, here
                break
            low, below = x, here
    resolution = _resolution(state)
    below = min(below, 0.0)
    for trial in range(200):
        if high > 1.0 or high - low <= resolution or above <= 0.0:
            break
        x = _between(trial, low, high, below, above, resolution)
        _look_at(gradient, data, dims, work, tableau, state, pattern, x)
        here = _worst(theta, data, dims, work, pattern)
        if here > 0.0:
            high, above = x, here
            below *= 0.5
        else:
            low, below = x, here
            above *= 0.5
    return high


@kernel
def keeps(theta, data, dims, work, pattern):
    """Whether a state is within the pattern that the last gradient, there, was of."""
    d, planes, trial = dims[1], dims[7], pattern.share[TRIAL]
    heights = pattern.heights[1 - pattern.numbers[BEFORE]]
    relu.heights(theta, data, dims, heights)
    for j in range(dims[4]):
        if work[relu.sliding_at(dims) + j] > 0.0:
            _shares(j, theta, data, dims, work, pattern, TRIAL)
        size = _size(j, theta, d)
        for p in range(planes):
            at = j * planes + p
            if _stands(pattern.mode[j, p]):
                if _outside(pattern.mode[j, p], trial[at]) > pattern.slack[at]:
                    return False
            elif pattern.mode[j, p] * heights[at] < -_margin(size, pattern):
                return False
    return True


@kernel
def _keep_shares(dims, work, pattern, elapsed):
    """Note how fast the shares changed, and make what was after the step what is before the next."""
    m, planes, numbers = dims[4], dims[7], pattern.numbers
    before, after = pattern.share[numbers[BEFORE]], pattern.share[1 - numbers[BEFORE]]
    for j in range(m):
        if work[relu.sliding_at(dims) + j] > 0.0:
            for at in range(j * planes, (j + 1) * planes):
                change = abs(after[at] - before[at])
                pattern.rate[at] = change / elapsed if elapsed > 0.0 else -1.0
    numbers[BEFORE] = 1 - numbers[BEFORE]


@kernel
def _crossed(j, p, size, dims, pattern):
    """Whether neuron j stands past plane p: with half the margin, so that rounding cannot undo what was located."""
    height = pattern.heights[1 - pattern.numbers[BEFORE], j * dims[7] + p]
    return pattern.mode[j, p] * height < -0.5 * _margin(size, pattern)


@kernel
def _released(j, p, dims, pattern):
    """Whether the share of a plane on which neuron j stands is out of its range, with half the margin."""
    at = j * dims[7] + p
    return (
        _outside(pattern.mode[j, p], pattern.share[1 - pattern.numbers[BEFORE], at]) > 0.5 * pattern.slack[at]
    )


@kernel
def _cut(gradient, data, dims, work, tableau, state, output, pattern, x):
    """End the last step at the part x of it, and decide the neurons whose events have happened there."""
    clock, m, d, planes, numbers = state.clock, dims[4], dims[1], dims[7], pattern.numbers
    t = clock[T_BEFORE] + x * clock[H_BEFORE]
    _look_at(gradient, data, dims, work, tableau, state, pattern, x)
    theta = state.theta
    if x < 1.0:
        clock[DISSIPATION] = pattern.looked[1]
        explicit.copy(pattern.node[0], theta)
        clock[T] = t
        output.history[output.cursor[HISTORY] - 1, 1] = t - clock[T_BEFORE]
    after = 1 - numbers[BEFORE]
    _note_steepest(dims, work, pattern)
    relu.heights(theta, data, dims, pattern.heights[after])
    for j in range(m):
        pattern.touched[j] = 0
        if work[relu.sliding_at(dims) + j] > 0.0:
            _shares(j, theta, data, dims, work, pattern, after)
        size = _size(j, theta, d)
        for p in range(planes):
            if _stands(pattern.mode[j, p]):
                if _released(j, p, dims, pattern):
                    pattern.touched[j] = 1
            elif _crossed(j, p, size, dims, pattern):
                pattern.touched[j] = 1
    for j in range(m):
        if not pattern.touched[j]:
            continue
        size = _size(j, theta, d)
        tall = max(1e-9 * _tallest(j, numbers[BEFORE], dims, pattern), 3.0 * pattern.scales[NOTHING])
        if planes > 1 and _tallest(j, after, dims, pattern) <= tall:
            numbers[ZERO_NEURON] = j
            return AT_ZERO
        relu.forces(j, theta, dims, work, pattern.force)
        for p in range(planes):
            now = pattern.mode[j, p]
            pattern.arrived[p], pattern.forced[p] = ELSEWHERE, 0
            if _stands(now):
                pattern.arrived[p] = 0
                if now == SLIDING and _released(j, p, dims, pattern):
                    plus, minus = _pulls(p, pattern.force, data, dims)
                    pattern.forced[p] = PLUS if pattern.share[after, j * planes + p] > 0.5 else MINUS
                    if plus - minus >= 0.0:  # it has turned repelling: away from the side that pulls it back
                        _record(t, j, p, NOT_UNIQUE, data, dims, pattern)
                        pattern.forced[p] = -pattern.forced[p]
            elif _crossed(j, p, size, dims, pattern):
                pattern.arrived[p] = now
        decide(t, j, theta, data, dims, work, pattern)
        if _tangled(j, dims, work, pattern):
            numbers[ZERO_NEURON] = j
            return AT_ZERO
    relu.heights(theta, data, dims, pattern.heights[after])
    _keep_shares(dims, work, pattern, x * clock[H_BEFORE])
    for j in range(m):
        if pattern.touched[j]:
            for at in range(j * planes, (j + 1) * planes):
                pattern.rate[at] = -1.0
    state.counters[FRESH] = MOVED
    return PAUSED


@kernel
def advance(gradient, data, dims, work, tableau, state, output, pattern, rtol, atol, budget, max_steps):
    """Integrate with events until all times are saved, or as far as it goes; return why it came back."""
    counters, clock, numbers = state.counters, state.clock, pattern.numbers
    while True:
        if numbers[EVENTS] + _most_events(dims) > pattern.table.shape[0]:
            return TABLE_FULL
        taken = counters[ACCEPTED]
        code = explicit.advance(
            gradient, data, dims, work, tableau, state, output, rtol, atol, 1 if budget > 0 else 0, max_steps
        )
        if code != PAUSED:
            return code
        budget -= 1
        if counters[ACCEPTED] > taken:
            # the last stage is the gradient at the end, unless dense output has called for others since
            pattern.looked[0] = 1.0 if output.dense_times.shape[0] == 0 else -1.0
            relu.heights(state.theta, data, dims, pattern.heights[1 - numbers[BEFORE]])
            x = _first_crossing(gradient, data, dims, work, tableau, state, pattern)
            x = min(x, _first_release(gradient, data, dims, work, tableau, state, pattern, min(x, 1.0)))
            if x > 1.0:
                _keep_shares(dims, work, pattern, clock[H_BEFORE])
            else:
                if x < 1.0 and output.dense_times.shape[0] == 0:
                    node = pattern.node[0]
                    _look_at(gradient, data, dims, work, tableau, state, pattern, x)
                    for i in range(node.size):
                        state.side[2, i] = -state.gradient[i]
                    t = clock[T_BEFORE] + x * clock[H_BEFORE]
                    if not explicit.departure(tableau, state, t, node, rtol, atol) <= explicit.TRUSTED:
                        # the event may be the interpolant's alone: bring it near the end of a step
                        explicit.take_back(state, output, clock[H_BEFORE] * min(0.5, max(0.1, x)))
                        continue
                crowd = 1e-8 * max(abs(clock[T_BEFORE]), clock[H])
                numbers[REPEATS] += 1
                if abs(clock[T_BEFORE] + x * clock[H_BEFORE] - pattern.scales[CROWDED]) > crowd:
                    pattern.scales[CROWDED], numbers[REPEATS] = clock[T_BEFORE], 0
                elif numbers[REPEATS] > 20 * dims[4] * dims[7]:
                    return STUCK
                code = _cut(gradient, data, dims, work, tableau, state, output, pattern, x)
                if code != PAUSED:
                    return code
        if budget <= 0:
            return PAUSED
