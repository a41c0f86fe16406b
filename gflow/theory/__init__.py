"""Closed forms beside the trajectories; nothing here runs a solver."""

from gflow.theory import bias, diagonal, effective, linear, rank, saddles, separable
from gflow.theory.prediction import Hypothesis, Prediction, Refused

__all__ = [
    "Hypothesis",
    "Prediction",
    "Refused",
    "bias",
    "diagonal",
    "effective",
    "linear",
    "rank",
    "saddles",
    "separable",
]
