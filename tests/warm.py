"""Compile everything once, in halves: two workers of a whole test run would each compile all of it."""

from __future__ import annotations

import numpy as np

import gflow
from gflow.papers import kinks

X, Y = np.array([[1.0, 2.0], [1.0, -1.0]]), np.array([1.0, -1.0])


def smooth():
    """Linear networks, by every method."""
    model, problem = gflow.DeepLinear((1, 1, 1)), gflow.Problem.factorization([[2.0]])
    start = np.full(2, 1e-3)
    run = gflow.flow(model, problem, start, [1.0, np.inf])
    assert run.status.code == "finished" and run.loss.size == 2 and run.gauges.dissipation_defect is not None
    gflow.flow(model, problem, start, 10.0, method="bdf", dense=True)
    gflow.ensemble(model, problem, [start] * 32, 10.0)
    labelled = gflow.Problem(X, Y, loss="logistic")
    gflow.flow(gflow.DeepLinear((2, 1)), labelled, np.full(2, 0.1), 2.0, clock="loss")


def others():
    """Kinks, diagonal networks in all coordinates, descent."""
    kinks.prepare()
    model, problem, start = kinks.random_problem()
    gflow.descend(model, problem, start, 0.01, 5)
    model = gflow.TwoLayerReLU(2, 4)
    labelled = gflow.Problem(X, Y, loss="logistic")
    gflow.flow(model, labelled, model.init("balanced", scale=0.1, rng=0), 1.0, clock="loss", max_steps=100)
    problem = gflow.Problem(X, Y)
    for depth in (2, 3):
        model = gflow.Diagonal(2, depth)
        gflow.flow(model, problem, model.init(scale=0.1), 1.0, coords="log", method="dop853")
    model = gflow.Diagonal(2)
    run = gflow.stochastic_flow(model, problem, model.init(scale=0.1), 1.0, 0.01, 0)
    assert run.loss.size == 2
    gflow.ensemble(model, problem, [model.init(scale=0.1)] * 2, step_size=0.01, n_steps=5)


HALVES = {"gw0": smooth, "gw1": others}
