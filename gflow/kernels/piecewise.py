"""The exact flow of a two-layer ReLU network: events, sliding, and no chatter.

The gradient jumps where a neuron's hyperplane w.u = 0 passes a sample.  Between events the network keeps a
pattern in which its field is smooth, and the explicit loop takes its steps there.  After each step the
switching functions are looked at between its ends; the earliest that changes sign cuts the step short, and
the neuron that it belongs to is decided anew.

A neuron's velocity at a kink is a convex combination of its two one-sided limits: with b+ and b- the pulls
along u on either side, b- + s (b+ - b-), s in [0, 1].  Where b+ < b- the kink attracts, and all kinks of the
neuron together take the s for which the velocity is shortest: its conditions for a minimum are those of the
differential inclusion (s = 1: leaves to the active side; s = 0: to the inactive; between: slides).  Where
b+ > b- the kink repels; a neuron that arrives passes through, one that stands there may leave to either
side, and the table says so.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflow.kernels import explicit, relu
from gflow.kernels.abi import kernel
from gflow.kernels.explicit import (
    ACCEPTED,
    DISSIPATION,
    FRESH,
    H_BEFORE,
    HISTORY,
    MOVED,
    PAUSED,
    T_BEFORE,
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

# Places in Pattern.numbers.
EVENTS, NON_UNIQUE, REPEATS, WATCHED, ZERO_NEURON = range(5)

_NODES = 5
_ROUNDING = 3e-14
_LANDED = 1e-12


class Pattern(NamedTuple):
    """The discrete part of the state, and room to work in."""

    mode: Ints  # (m, planes)
    numbers: Ints
    table: Floats  # (E, 4): time, neuron, sample, kind
    start_size: Floats  # (m,): |w_j| at the start
    heights: Floats  # (2, m * planes)
    share: Floats  # (2, m * planes): the s of sliding planes
    force: Floats  # (m * n,)
    node: Floats  # (1, P)
    small: Floats  # scratch of a decision
    touched: Ints  # (m,)
    watched: Ints  # the functions j * planes + p whose earliest root is sought


def new_pattern(dims: Ints, size: int, room: int = 256) -> Pattern:
    """A pattern to be filled by :func:`begin`."""
    d, n, m, planes = int(dims[1]), int(dims[3]), int(dims[4]), int(dims[7])
    return Pattern(
        np.zeros((m, planes), dtype=np.int64), np.zeros(5, dtype=np.int64), np.empty((room, 4)), np.zeros(m),
        np.zeros((2, m * planes)), np.zeros((2, m * planes)), np.zeros(m * n), np.zeros((1, size)),
        np.zeros(planes * (planes + 4) + d), np.zeros(m, dtype=np.int64),
        np.zeros(m * planes, dtype=np.int64),
    )  # fmt: skip


@kernel
def _slope(positive, coefficient, leak):
    """Slope of a sample on the positive or negative side of its hyperplane."""
    return 1.0 if positive == (coefficient > 0.0) else leak


@kernel
def _pulls(j, plane, force, data, dims):
    """Pulls of a hyperplane's samples on neuron j along its normal: on its positive and negative side."""
    n, first = dims[3], relu.coefficients_at(dims)
    members, starts = relu.PLANES + n, relu.PLANES + 2 * n
    plus, minus = 0.0, 0.0
    for q in range(dims[starts + plane], dims[starts + plane + 1]):
        i = dims[members + q]
        c, pull = data[first + i], force[j * n + i]
        plus += _slope(True, c, data[2]) * pull * c
        minus += _slope(False, c, data[2]) * pull * c
    return plus, minus


@kernel
def _apply(j, data, dims, work, mode):
    """Write the slopes of neuron j and the basis of its sliding normals to ``work``."""
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
def _solve(a, b, n):
    """Solve the symmetric system a x = b of n equations in place (a, b flat); rows without pivot give 0."""
    for c in range(n):
        best = c
        for r in range(c + 1, n):
            if abs(a[r * n + c]) > abs(a[best * n + c]):
                best = r
        if abs(a[best * n + c]) < 1e-300:
            continue
        if best != c:
            for q in range(n):
                a[c * n + q], a[best * n + q] = a[best * n + q], a[c * n + q]
            b[c], b[best] = b[best], b[c]
        for r in range(n):
            if r != c:
                factor = a[r * n + c] / a[c * n + c]
                for q in range(c, n):
                    a[r * n + q] -= factor * a[c * n + q]
                b[r] -= factor * b[c]
    for c in range(n):
        pivot = a[c * n + c]
        b[c] = b[c] / pivot if abs(pivot) >= 1e-300 else 0.0


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
        pull = _slope(side == PLUS, c, data[2]) * force[j * n + i] * c
        for l in range(d):
            out[l] += pull * data[normals + p * d + l]


@kernel
def _shares(j, theta, data, dims, mode, force, small, out):
    """The s of the planes along which neuron j slides, to ``out`` (planes,); False if one of them repels."""
    d, planes = dims[1], dims[7]
    normals = relu.normals_at(dims)
    velocity = small[:d]
    _rest_velocity(j, theta, data, dims, mode, force, velocity)
    count = 0
    for p in range(planes):
        if mode[j, p] == SLIDING:
            count += 1
    jump, gram = small[d : d + count], small[d + planes : d + planes + count * count]
    right = small[d + planes + planes * planes : d + planes + planes * planes + count]
    attracts = True
    q = 0
    for p in range(planes):
        if mode[j, p] == SLIDING:
            plus, minus = _pulls(j, p, force, data, dims)
            jump[q] = plus - minus
            if jump[q] >= 0.0:
                attracts = False
            for l in range(d):
                velocity[l] += minus * data[normals + p * d + l]
            q += 1
    q = 0
    for p in range(planes):
        if mode[j, p] != SLIDING:
            continue
        right[q] = 0.0
        for l in range(d):
            right[q] -= velocity[l] * data[normals + p * d + l]
        r = 0
        for o in range(planes):
            if mode[j, o] == SLIDING:
                inner = 0.0
                for l in range(d):
                    inner += data[normals + p * d + l] * data[normals + o * d + l]
                gram[q * count + r] = inner * jump[r]
                r += 1
        q += 1
    _solve(gram, right, count)
    q = 0
    for p in range(planes):
        if mode[j, p] == SLIDING:
            out[p] = right[q]
            q += 1
    return attracts


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
    if kind == NOT_UNIQUE:
        numbers[NON_UNIQUE] += 1


@kernel
def decide(t, j, theta, data, dims, work, pattern, arrived, forced):
    """Give neuron j its modes at the planes on which it stands; record what changes.

    ``arrived[p]`` is the side from which it reached plane p (0: it slides, rests or begins there; 9: it is
    not there); ``forced[p]`` is a side that a multiplier has released it to (0: none).
    """
    d, planes, mode, force = dims[1], dims[7], pattern.mode, pattern.force
    normals, small = relu.normals_at(dims), pattern.small
    g, share = small[:d], small[d : d + planes]
    jump = small[d + planes : d + 2 * planes]
    base = small[d + 2 * planes : d + 3 * planes]
    before = small[d + 3 * planes : d + 4 * planes]
    for p in range(planes):
        before[p] = mode[j, p]
        if arrived[p] != 9:
            mode[j, p] = SLIDING  # so that the velocity of the rest leaves it out
    _rest_velocity(j, theta, data, dims, mode, force, g)
    scale = 0.0
    for i in range(dims[3]):
        scale += abs(force[j * dims[3] + i] * data[relu.coefficients_at(dims) + i])
    for p in range(planes):
        if arrived[p] == 9:
            continue
        plus, minus = _pulls(j, p, force, data, dims)
        base[p], jump[p] = minus, plus - minus
        share[p] = 0.0
        if forced[p] == PLUS or (jump[p] >= 0.0 and arrived[p] == MINUS):
            share[p] = 1.0
        elif jump[p] < 0.0 and forced[p] == 0:
            share[p] = 0.5
        for l in range(d):
            g[l] += (base[p] + share[p] * jump[p]) * data[normals + p * d + l]
    # shortest velocity over the attracting planes, by coordinates
    for _ in range(10000):
        moved = 0.0
        for p in range(planes):
            if arrived[p] == 9 or forced[p] != 0 or jump[p] >= 0.0:
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
    quiet = 1e-10 * scale
    for p in range(planes):
        if arrived[p] == 9:
            continue
        speed = 0.0
        for l in range(d):
            speed += g[l] * data[normals + p * d + l]
        kind = -1
        if forced[p] != 0:
            mode[j, p] = forced[p]
            kind = LEAVE_ACTIVE if forced[p] == PLUS else LEAVE_INACTIVE
        elif jump[p] < 0.0:
            if 1e-12 < share[p] < 1.0 - 1e-12:
                mode[j, p] = SLIDING
            elif abs(speed) <= quiet and share[p] <= 1e-12 and _no_pull(j, p, data, dims, pattern):
                mode[j, p] = RESTING
            else:
                mode[j, p] = PLUS if share[p] > 0.5 else MINUS
        elif arrived[p] == PLUS or arrived[p] == MINUS:
            mode[j, p] = -int(arrived[p])
            if speed * mode[j, p] < -quiet:
                kind = NOT_UNIQUE
        else:  # stands on a kink that repels
            up = speed + (1.0 - share[p]) * jump[p]
            if speed < -quiet and up > quiet:
                kind = NOT_UNIQUE
            elif abs(up) <= quiet and abs(speed) <= quiet:
                kind = -1
            mode[j, p] = PLUS if speed >= -quiet and up > quiet else MINUS
            if abs(up) <= quiet and abs(speed) <= quiet:
                mode[j, p] = RESTING
        if kind < 0 and mode[j, p] != before[p]:
            if mode[j, p] == SLIDING:
                kind = SLIDE
            elif mode[j, p] == RESTING:
                kind = REST
            elif before[p] == SLIDING or before[p] == RESTING:
                kind = LEAVE_ACTIVE if mode[j, p] == PLUS else LEAVE_INACTIVE
            else:
                kind = ACTIVATE if mode[j, p] == PLUS else DEACTIVATE
        if kind >= 0:
            _record(t, j, p, kind, data, dims, pattern)
    _apply(j, data, dims, work, mode)
    _land(j, theta, dims, work)


@kernel
def _no_pull(j, plane, data, dims, pattern):
    """Whether the plane's inactive side pulls nothing, so that the neuron rests on it (slope 0)."""
    plus, minus = _pulls(j, plane, pattern.force, data, dims)
    return minus == 0.0


@kernel
def begin(t, theta, data, dims, work, pattern):
    """The pattern at the start; returns the first neuron with w = 0, or -1."""
    d, m, planes, mode = dims[1], dims[4], dims[7], pattern.mode
    work[0] = 0.0
    relu.forces(theta, data, dims, work, pattern.force)
    relu.heights(theta, data, dims, pattern.heights[0])
    work[0] = 1.0
    arrived, forced = np.full(planes, 9), np.zeros(planes, dtype=np.int64)
    for j in range(m):
        size = 0.0
        for l in range(d):
            size += theta[j * d + l] ** 2
        size = np.sqrt(size)
        pattern.start_size[j] = size
        if size == 0.0:
            return j
        on_kink = False
        for p in range(planes):
            h = pattern.heights[0, j * planes + p]
            mode[j, p] = PLUS if h > 0.0 else MINUS
            arrived[p] = 9
            if abs(h) <= _ROUNDING * size:
                arrived[p] = 0
                on_kink = True
        if on_kink:
            decide(t, j, theta, data, dims, work, pattern, arrived, forced)
        else:
            _apply(j, data, dims, work, mode)
    return -1


@kernel
def _look(theta, data, dims, work, pattern, side):
    """Heights, and the shares of sliding neurons, at a state, to row ``side``."""
    relu.heights(theta, data, dims, pattern.heights[side])
    m, planes, count = dims[4], dims[7], relu.sliding_at(dims)
    sliding = False
    for j in range(m):
        if work[count + j] > 0.0:
            sliding = True
    if not sliding:
        return
    relu.forces(theta, data, dims, work, pattern.force)
    for j in range(m):
        if work[count + j] > 0.0:
            out = pattern.share[side, j * planes : (j + 1) * planes]
            for p in range(planes):
                out[p] = 0.5
            _shares(j, theta, data, dims, pattern.mode, pattern.force, pattern.small, out)
            for p in range(planes):
                if pattern.mode[j, p] == RESTING or pattern.mode[j, p] == SLIDING:
                    plus, minus = _pulls(j, p, pattern.force, data, dims)
                    if pattern.mode[j, p] == RESTING:
                        out[p] = 0.5 if plus - minus <= 0.0 else 2.0
                    elif plus - minus >= 0.0:
                        out[p] = 2.0 if out[p] > 0.5 else -1.0


@kernel
def _excess(j, p, theta_size, side, dims, pattern):
    """How far a switching function has gone over: positive once its event has happened."""
    at = j * dims[7] + p
    now = pattern.mode[j, p]
    if now == PLUS:
        return -pattern.heights[side, at] - _ROUNDING * theta_size
    if now == MINUS:
        return pattern.heights[side, at] - _ROUNDING * theta_size
    s = pattern.share[side, at]
    return max(-s, s - 1.0) - 1e-11


@kernel
def _over(j, p, size, side, dims, pattern):
    """Whether an event is here: with half the margin, so that rounding cannot undo what was located."""
    margin = 0.5e-11
    if pattern.mode[j, p] == PLUS or pattern.mode[j, p] == MINUS:
        margin = 0.5 * _ROUNDING * size
    return _excess(j, p, size, side, dims, pattern) > -margin


@kernel
def _size(j, theta, d):
    total = 0.0
    for l in range(d):
        total += theta[j * d + l] ** 2
    return np.sqrt(total)


@kernel
def _first_event(gradient, data, dims, work, tableau, state, pattern, reach):
    """Bracket the earliest event of the last step in (low, high], parts of it; high = 0 if there is none."""
    m, d, planes = dims[4], dims[1], dims[7]
    low = 0.0
    t, h = state.clock[T_BEFORE], state.clock[H_BEFORE]
    for node in range(1, _NODES + 1):
        x = reach * node / _NODES
        theta = state.theta
        if x < 1.0:
            theta = pattern.node[0]
            explicit.interpolate(gradient, data, dims, work, tableau, state, t + x * h, theta)
        _look(theta, data, dims, work, pattern, 0)
        for j in range(m):
            size = _size(j, theta, d)
            for p in range(planes):
                if _excess(j, p, size, 0, dims, pattern) > 0.0:
                    return low, x
        low = x
    return low, 0.0


@kernel
def _watch(data, dims, work, pattern, theta):
    """Make the functions whose events have happened at a state those that are watched."""
    m, d, planes = dims[4], dims[1], dims[7]
    _look(theta, data, dims, work, pattern, 0)
    count = 0
    for j in range(m):
        size = _size(j, theta, d)
        for p in range(planes):
            if _excess(j, p, size, 0, dims, pattern) > 0.0:
                pattern.watched[count] = j * planes + p
                count += 1
    pattern.numbers[WATCHED] = count


@kernel
def _worst(data, dims, work, pattern, theta):
    """The largest excess of the watched functions at a state."""
    d, planes = dims[1], dims[7]
    normals = relu.normals_at(dims)
    worst = -1e300
    shares = False
    for q in range(pattern.numbers[WATCHED]):
        at = pattern.watched[q]
        j, p = at // planes, at % planes
        if pattern.mode[j, p] == SLIDING or pattern.mode[j, p] == RESTING:
            shares = True
        height = 0.0
        for l in range(d):
            height += theta[j * d + l] * data[normals + p * d + l]
        pattern.heights[0, at] = height
    if shares:
        _look(theta, data, dims, work, pattern, 0)
    for q in range(pattern.numbers[WATCHED]):
        at = pattern.watched[q]
        j = at // planes
        worst = max(worst, _excess(j, at % planes, _size(j, theta, d), 0, dims, pattern))
    return worst


@kernel
def _locate(gradient, data, dims, work, tableau, state, pattern, low, high):
    """Narrow the bracket of the earliest event to the last bits; at its upper end the event has happened.

    The root of the largest excess among the functions that have gone over at the upper end, by the
    Illinois variant of regula falsi with a bisection now and then.
    """
    t, h = state.clock[T_BEFORE], state.clock[H_BEFORE]
    theta = pattern.node[0]
    resolution = 2.0 * np.finfo(np.float64).eps * max(1.0, abs(t / h))
    explicit.interpolate(gradient, data, dims, work, tableau, state, t + high * h, theta)
    _watch(data, dims, work, pattern, theta)
    above = _worst(data, dims, work, pattern, theta)
    explicit.interpolate(gradient, data, dims, work, tableau, state, t + low * h, theta)
    below = min(_worst(data, dims, work, pattern, theta), 0.0)
    for trial in range(200):
        if high - low <= resolution or above <= 0.0:
            break
        x = 0.5 * (low + high)
        if trial % 5 != 4 and above - below > 0.0:
            x = high - above * (high - low) / (above - below)
            x = min(max(x, low + 0.5 * resolution), high - 0.5 * resolution)
        explicit.interpolate(gradient, data, dims, work, tableau, state, t + x * h, theta)
        here = _worst(data, dims, work, pattern, theta)
        if here > 0.0:
            high, above = x, here
            below *= 0.5
        else:
            low, below = x, here
            above *= 0.5
    return high


@kernel
def _cut(gradient, data, dims, work, tableau, state, output, pattern, x):
    """End the last step at the part x of it, and decide the neurons whose events have happened there."""
    clock, m, d, planes = state.clock, dims[4], dims[1], dims[7]
    h = clock[H_BEFORE]
    t = clock[T_BEFORE] + x * h
    if x < 1.0:
        clock[DISSIPATION] = explicit.interpolate(
            gradient, data, dims, work, tableau, state, t, pattern.node[0]
        )
        state.theta[:] = pattern.node[0]
        clock[T] = t
        output.history[output.cursor[HISTORY] - 1, 1] = t - clock[T_BEFORE]
    theta = state.theta
    _look(theta, data, dims, work, pattern, 0)
    relu.forces(theta, data, dims, work, pattern.force)
    for j in range(m):
        pattern.touched[j] = 0
        size = _size(j, theta, d)
        for p in range(planes):
            if _over(j, p, size, 0, dims, pattern):
                pattern.touched[j] = 1
    arrived, forced = np.full(planes, 9), np.zeros(planes, dtype=np.int64)
    for j in range(m):
        if not pattern.touched[j]:
            continue
        size = _size(j, theta, d)
        if size <= 1e-9 * pattern.start_size[j]:
            pattern.numbers[ZERO_NEURON] = j
            return AT_ZERO
        for p in range(planes):
            at, now = j * planes + p, pattern.mode[j, p]
            arrived[p], forced[p] = 9, 0
            if now == SLIDING or now == RESTING:
                arrived[p] = 0
                s = pattern.share[0, at]
                if now == RESTING and s > 1.5:
                    _record(t, j, p, NOT_UNIQUE, data, dims, pattern)
                elif now == SLIDING and _over(j, p, size, 0, dims, pattern):
                    plus, minus = _pulls(j, p, pattern.force, data, dims)
                    forced[p] = PLUS if s > 0.5 else MINUS
                    if plus - minus >= 0.0:
                        _record(t, j, p, NOT_UNIQUE, data, dims, pattern)
                        forced[p] = -forced[p]
            elif now * pattern.heights[0, at] <= _LANDED * size and _over(j, p, size, 0, dims, pattern):
                arrived[p] = now
        decide(t, j, theta, data, dims, work, pattern, arrived, forced)
    state.counters[FRESH] = MOVED
    return PAUSED


@kernel
def advance(gradient, data, dims, work, tableau, state, output, pattern, rtol, atol, budget, max_steps):
    """Integrate with events until all times are saved, or as far as it goes; return why it came back."""
    counters = state.counters
    while True:
        if pattern.numbers[EVENTS] + 4 * dims[7] + 4 * dims[4] > pattern.table.shape[0]:
            return TABLE_FULL
        taken = counters[ACCEPTED]
        code = explicit.advance(
            gradient, data, dims, work, tableau, state, output, rtol, atol, 1 if budget > 0 else 0, max_steps
        )
        if code != PAUSED:
            return code
        budget -= 1
        if counters[ACCEPTED] > taken:
            low, high = _first_event(gradient, data, dims, work, tableau, state, pattern, 1.0)
            if high > 0.0:
                x = _locate(gradient, data, dims, work, tableau, state, pattern, low, high)
                if x * state.clock[H_BEFORE] <= 4e-16 * abs(state.clock[T_BEFORE]):
                    pattern.numbers[REPEATS] += 1
                    if pattern.numbers[REPEATS] > 20 * dims[4] * dims[7]:
                        return STUCK
                else:
                    pattern.numbers[REPEATS] = 0
                code = _cut(gradient, data, dims, work, tableau, state, output, pattern, x)
                if code != PAUSED:
                    return code
        if budget <= 0:
            return PAUSED
