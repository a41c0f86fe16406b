"""Closed forms beside the trajectories; nothing here runs a solver."""

from gflow.theory import (
    bias,
    clusters,
    diagonal,
    effective,
    exact,
    factorization,
    linear,
    rank,
    saddles,
    separable,
)
from gflow.theory.prediction import Hypothesis, Prediction, Refused

__all__ = [
    "Hypothesis",
    "Prediction",
    "Refused",
    "bias",
    "clusters",
    "diagonal",
    "effective",
    "exact",
    "factorization",
    "linear",
    "rank",
    "saddles",
    "separable",
]
