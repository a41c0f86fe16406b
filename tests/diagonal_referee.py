"""Referees of the theory of diagonal networks, written from the papers: plain flows, scipy's integrators, no gflow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp


@dataclass(frozen=True)
class StandIn:
    """What the theory reads of a diagonal network.  To be replaced by gflow.Diagonal once that is merged."""

    form: str = "difference"
    depth: int = 2


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


def mirror_beta(form, depth, alpha, eta):
    """β at η = −∫∇_β L from the equal start: w₊ = w₋ = α, u = √2 α and v = 0, or w = α."""
    if depth == 2:
        rate = 2.0 if form == "product" else 4.0
        log = 2 * np.log(alpha)
        if form == "power":
            return np.exp(log + rate * eta)
        half = 0.5 if form == "product" else 1.0
        return half * (np.exp(log + rate * eta) - np.exp(log - rate * eta))
    p, pole = depth / (depth - 2), alpha ** (2 - depth)
    up = (pole - depth * (depth - 2) * eta) ** (-p)
    return up if form == "power" else up - (pole + depth * (depth - 2) * eta) ** (-p)


def mirror_slope(form, depth, alpha, eta):
    """dβ/dη there."""
    if depth == 2:
        rate = 2.0 if form == "product" else 4.0
        log = 2 * np.log(alpha)
        if form == "power":
            return rate * np.exp(log + rate * eta)
        half = 0.5 if form == "product" else 1.0
        return half * rate * (np.exp(log + rate * eta) + np.exp(log - rate * eta))
    p, pole, rate = depth / (depth - 2), alpha ** (2 - depth), depth * (depth - 2)
    up = rate * p * (pole - rate * eta) ** (-p - 1)
    return up if form == "power" else up + rate * p * (pole + rate * eta) ** (-p - 1)


def mirror_flow(form, depth, alpha, x, y, factor, times, rtol=1e-10, atol=1e-12):
    """β (T, d) of L = factor ‖Xβ − y‖² by dη/dt = −∇L(β(η)) with Radau and its Jacobian: however small α."""
    hessian = 2 * factor * x.T @ x

    def rhs(t, eta):
        return -2 * factor * x.T @ (x @ mirror_beta(form, depth, alpha, eta) - y)

    def jac(t, eta):
        return -hessian * mirror_slope(form, depth, alpha, eta)

    start = np.zeros(x.shape[1])
    found = solve_ivp(rhs, (0, times[-1]), start, "Radau", t_eval=times, rtol=rtol, atol=atol, jac=jac)
    assert found.success, found.message
    return mirror_beta(form, depth, alpha, found.y.T)


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
