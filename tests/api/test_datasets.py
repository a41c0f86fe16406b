"""Data sets: their ranks, moments and singular values are what their docstrings say."""

from __future__ import annotations

import numpy as np
import pytest

from gflow import Problem, datasets


@pytest.mark.parametrize("centred", [False, True])
def test_digits_are_white_on_their_row_space(centred):
    x, y = datasets.digits(centred=centred, whitened=True)
    assert x.shape == (1797, 64) and y.shape == (1797, 10)
    moment = x.T @ x / len(x)
    assert np.linalg.norm(moment @ moment - moment, 2) < 1e-12  # a projector ...
    assert round(np.trace(moment)) == 61  # ... of the numerical rank
    constant = np.flatnonzero(np.ptp(datasets.digits()[0], axis=0) == 0)
    assert len(constant) == 3
    assert np.abs(x[:, constant]).max() < 1e-12  # pixels stay pixels


@pytest.mark.parametrize(("centred", "modes"), [(False, 10), (True, 9)])
def test_centred_labels_lose_one_mode(centred, modes):
    s = Problem(*datasets.digits(centred=centred, whitened=True)).target_svd[1]
    assert np.sum(s > 1e-10 * s[0]) == modes


def test_raw_digits_are_pixels_and_one_hot_labels():
    x, y = datasets.digits()
    assert x.min() == 0 and x.max() == 1
    assert np.array_equal(y.sum(axis=1), np.ones(len(y)))


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_hierarchy_has_the_singular_values_of_a_tree(levels):
    x, y = datasets.hierarchy(levels)
    assert x.shape == (2**levels,) * 2 and y.shape == (2**levels, 2 ** (levels + 1) - 1)
    expected = [2.0 ** (levels + 1) - 1]
    for level in range(1, levels + 1):
        expected += [2.0 ** (levels + 1 - level) - 1] * 2 ** (level - 1)
    assert np.linalg.svd(y, compute_uv=False) ** 2 == pytest.approx(expected, rel=1e-12)


def test_whiten_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"X must have shape \(n, d\); got \(3,\)"):
        datasets.whiten([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="X must have an entry that is not zero"):
        datasets.whiten(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="levels must be a whole number >= 1; got 0"):
        datasets.hierarchy(0)
