"""How far from the saddles a flow stays at a finite α, over many designs: what the paper's claims suppose."""

from __future__ import annotations

import numpy as np

from gflow.papers import pesme2023 as paper

ALPHAS = 1e-16, 1e-32


def test_the_distance_from_the_saddles_is_the_power_of_alpha_that_the_path_says():
    compared, sharp = 0, 0
    for seed in range(40):
        setup = paper.SetUp(seed)
        t = setup.middles
        c = paper.exponents(setup.problem, setup.path, t)
        first, second = (paper.distances(setup, setup.flow(a, t, 1e-11), t) for a in ALPHAS)
        # of order one: the constant, unless the stay before was too short
        assert np.all(first <= 10 * ALPHAS[0] ** c + 1e-9)
        seen = (ALPHAS[0] ** c < 1e-3) & (second > 1e-10)
        slopes = np.log(second[seen] / first[seen]) / np.log(ALPHAS[1] / ALPHAS[0])
        np.testing.assert_allclose(slopes, c[seen], rtol=0.1)
        compared += np.count_nonzero(c > 0)
        sharp += np.count_nonzero(seen)
    assert compared > 100 and sharp > 20


def test_without_a_jump_that_comes_there_is_no_delay():
    """A run that ends before a jump has no time for it."""
    setup = paper.SetUp(paper.PLAIN)
    late, run = paper.delays(setup, 1e-2, 1e-9)
    assert np.isfinite(late).all() and run.status.ok
    setup.path.times[-1] *= 0.5  # the run is made up to 1.5 of the last predicted time
    assert np.isnan(paper.delays(setup, 1e-2, 1e-9)[0][-1])
