"""Full-batch gradient descent, as a compiled, resumable loop."""

from __future__ import annotations

import numpy as np

from gflow.kernels.abi import kernel

# Why the loop came back.
FINISHED, PAUSED, NON_FINITE = range(3)
# Places in the cursor.
STEP, SAVED = range(2)


@kernel
def advance(gradient, data, dims, work, theta, g, cursor, step_size, first, every, n_steps, saved, budget):
    """Descend from step ``cursor[STEP]`` to ``n_steps``; save each step first + multiple of ``every``, and the last.

    Comes back after ``budget`` steps, or where the gradient is no longer finite; ``theta`` then holds
    the last finite state.
    """
    size = theta.size
    while True:
        step = cursor[STEP]
        if cursor[SAVED] < saved.shape[0] and step == min(first + cursor[SAVED] * every, n_steps):
            saved[cursor[SAVED]] = theta
            cursor[SAVED] += 1
        if step == n_steps:
            return FINISHED
        if budget <= 0:
            return PAUSED
        g[size - 1] = np.nan  # stays, if a user's kernel raises
        gradient(0.0, theta, data, dims, work, g)
        largest = 0.0
        for i in range(size):
            largest += abs(theta[i] - step_size * g[i])
        if not np.isfinite(largest):
            return NON_FINITE
        for i in range(size):
            theta[i] -= step_size * g[i]
        cursor[STEP] += 1
        budget -= 1
