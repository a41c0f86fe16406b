"""Closed forms beside the trajectories; nothing here runs a solver."""

from gflow.theory import linear, separable
from gflow.theory.prediction import Hypothesis, Prediction, Refused

__all__ = ["Hypothesis", "Prediction", "Refused", "linear", "separable"]
