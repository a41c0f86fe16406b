"""Referees of the theory of diagonal networks, written from the papers: plain flows, scipy's integrators; of gflow only the network's description."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from scipy.integrate import solve_ivp

from gflow import Diagonal


def network(theta0, form="difference", depth=2):
    """The network of which the theory is asked, with as many inputs as the start has."""
    return Diagonal(len(theta0) if form == "power" else len(theta0) // 2, depth, form)


def nameless(form="difference", depth=2):
    """What claims to be a diagonal network, of a form or depth that there is not."""
    return SimpleNamespace(form=form, depth=depth)


def predictor(form, depth, theta):
    """β (..., d) of weights (..., P)."""
    if form == "power":
        return theta**depth
    d = theta.shape[-1] // 2
    first, second = theta[..., :d], theta[..., d:]
    return first * second if form == "product" else first**depth - second**depth


def pull_back(form, depth, theta, g):
    """Gradient by the weights (P,), of that by β (d,)."""
    if form == "power":
        return depth * theta ** (depth - 1) * g
    d = len(g)
    first, second = theta[:d], theta[d:]
    if form == "product":
        return np.concatenate([second * g, first * g])
    return np.concatenate([depth * first ** (depth - 1) * g, -depth * second ** (depth - 1) * g])


def weights_flow(form, depth, theta0, slope, times, rtol=1e-12):
    """β (T, d) and ∫∇_β L (T, d) of the flow of the weights, by DOP853; slope(β) is ∇_β L."""
    size = len(theta0)
    d = size if form == "power" else size // 2

    def rhs(t, state):
        theta = state[:size]
        g = slope(predictor(form, depth, theta))
        return np.concatenate([-pull_back(form, depth, theta, g), g])

    atol = np.concatenate([np.full(size, 1e-3 * rtol * np.abs(theta0).max()), np.full(d, 1e-14)])
    start = np.concatenate([theta0, np.zeros(d)])
    found = solve_ivp(rhs, (0, times[-1]), start, "DOP853", t_eval=times, rtol=rtol, atol=atol)
    assert found.success, found.message
    return predictor(form, depth, found.y[:size].T), found.y[size:].T


def mirror_flow(form, depth, alpha, x, y, factor, times, rtol=1e-10, atol=1e-12, method="Radau"):
    """β (T, d) of L = factor ‖Xβ − y‖² by its mirror flow, dη/dt = −∇L(β), with its Jacobian for implicit methods.

    From w₊ = w₋ = α, or u = √2 α and v = 0; alpha may be an array (d,), and however small: at depth 2 q = κη,
    β = 2 a² sinh q with a = α, or α / √2; beyond q = artanh(D (D − 2) α^(D−2) η), as h_D has a pole at 1.
    """
    d = x.shape[1]
    hessian = 2 * factor * x.T @ x
    log = np.log(alpha) - (0.5 * np.log(2) if form == "product" else 0.0)
    p = depth / (depth - 2) if depth > 2 else np.nan
    rate = {"product": 2.0}.get(form, 4.0) if depth == 2 else depth * (depth - 2) * np.exp((depth - 2) * log)

    def half_exp(power, q):
        """α^D e^|power q| / 2, and the same with − in the exponent."""
        return 0.5 * np.exp(depth * log + np.abs(power * q)), 0.5 * np.exp(depth * log - np.abs(power * q))

    def beta(q):
        if depth == 2:
            large, small = half_exp(1.0, q)
            return 2 * np.sign(q) * (large - small)
        large, small = half_exp(p, q)
        return 2 * np.cosh(q) ** p * np.sign(q) * (large - small)

    def beta_slope(q):
        if depth == 2:
            return 2 * sum(half_exp(1.0, q))
        return 2 * p * np.cosh(q) ** (p - 1) * sum(half_exp(p + 1, q))

    def speed(q):
        return rate * np.ones(d) if depth == 2 else rate * np.cosh(q) ** 2

    def gradient(q):
        return 2 * factor * x.T @ (x @ beta(q) - y)

    def rhs(t, q):
        return -speed(q) * gradient(q)

    def jac(t, q):
        out = -speed(q)[:, None] * hessian * beta_slope(q)
        if depth > 2:
            out -= np.diag(rate * np.sinh(2 * q) * gradient(q))
        return out

    with np.errstate(over="ignore", invalid="ignore"):  # trial steps of Newton's method inside Radau
        options = {"rtol": rtol, "atol": atol} | ({} if method == "DOP853" else {"jac": jac})
        found = solve_ivp(rhs, (0, times[-1]), np.zeros(d), method, times, **options)
    assert found.success, found.message
    return beta(found.y.T)


def equal_start(form, alpha, d):
    """The start of which the papers speak."""
    if form == "power":
        return np.full(d, float(alpha))
    if form == "product":
        return np.concatenate([np.full(d, np.sqrt(2) * alpha), np.zeros(d)])
    return np.full(2 * d, float(alpha))


def regression(n, d, sparse=None, seed=0):
    """A Gaussian design and labels of a predictor with some entries."""
    rng = np.random.default_rng(seed)
    x, beta = rng.normal(size=(n, d)), np.zeros(d)
    beta[: sparse or d] = rng.normal(size=sparse or d)
    return x, x @ beta
