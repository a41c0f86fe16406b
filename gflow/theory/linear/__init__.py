"""Closed forms for linear networks W = W_N ⋯ W_1 under gradient flow.

The pure functions are written for L = ½‖W − target‖² (whitened inputs): one unit of their time is one of
the flow's multiplied by the rate τ = 2 · factor · c, where XᵀX = c Π on the inputs' row space
(factorisation: τ = 2 · factor).  The predictions do that scaling.

``mode``: one mode of a balanced network; ``unbalanced``: of two layers with any imbalance; ``aligned``: the predictions
of all modes; ``lambda_balanced``: two layers whose modes mix; ``end_to_end``: speeds at any depth and loss.  Beneath
them: ``setting`` (network and problem), ``layers`` (measures of weight matrices) and ``bounds``.
"""

from gflow.theory.linear.aligned import modes, unbalanced_modes
from gflow.theory.linear.end_to_end import (
    Speeds,
    end_to_end_velocity,
    singular_value_speeds,
    singular_vector_speeds,
    speeds,
)
from gflow.theory.linear.lambda_balanced import riccati, riccati_matrix, solve_riccati, two_layer
from gflow.theory.linear.mode import closed_form_time, mode_gap, mode_strength, mode_time
from gflow.theory.linear.unbalanced import unbalanced_mode

__all__ = [
    "Speeds",
    "closed_form_time",
    "end_to_end_velocity",
    "mode_gap",
    "mode_strength",
    "mode_time",
    "modes",
    "riccati",
    "riccati_matrix",
    "singular_value_speeds",
    "singular_vector_speeds",
    "solve_riccati",
    "speeds",
    "two_layer",
    "unbalanced_mode",
    "unbalanced_modes",
]
