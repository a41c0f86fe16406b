"""Closed forms beside the trajectories; nothing here runs a solver."""

from gflow.theory import (
    alignment,
    bias,
    clusters,
    diagonal,
    effective,
    exact,
    factorization,
    linear,
    orthogonal,
    rank,
    saddles,
    separable,
    threshold,
)
from gflow.theory.prediction import Hypothesis, Prediction, Refused

__all__ = [
    "Hypothesis",
    "Prediction",
    "Refused",
    "alignment",
    "bias",
    "clusters",
    "diagonal",
    "effective",
    "exact",
    "factorization",
    "linear",
    "orthogonal",
    "rank",
    "saddles",
    "separable",
    "threshold",
]
