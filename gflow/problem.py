"""Problem: the data and the loss that a network is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, non_negative, one_of, plain_array, positive

Array = NDArray[np.float64]

KINDS = ("regression", "factorization", "sensing", "completion")
LOSSES = ("square", "logistic", "exponential", "softmax")


@dataclass(frozen=True, eq=False)
class Problem:
    r"""Data and loss: :math:`L = \text{factor} \sum_i \ell(f(x_i), y_i) + \tfrac12 \mu \|\theta\|^2`.

    Parameters
    ----------
    X : array (n, d)
        Inputs, one sample a row.
    Y : array (n, k) or (n,)
        Labels; a one-dimensional ``Y`` is one output.  ±1 for the logistic and the exponential loss
        (k = 1); rows of probabilities, such as one-hot rows, for softmax (k ≥ 2).
    loss : {"square", "logistic", "exponential", "softmax"}
        Loss ℓ of one sample: ‖f − y‖², log(1 + e^(−y f)), e^(−y f), or the cross-entropy of softmax(f).
    factor : float, optional
        Factor of the sum over samples; default ``1 / (2 n)`` for the square loss, ``1 / n`` for the others.
    weight_decay : float, optional
        The coefficient μ ≥ 0; default 0.

    Attributes
    ----------
    kind : str
        ``"regression"`` here; see :meth:`factorization`, :meth:`sensing`, :meth:`completion`.
    logarithm : bool
        Whether log L stands in the place of L; see :attr:`log`.

    Raises
    ------
    ValueError
        If an array has the wrong shape or an entry that is not finite, the sample counts differ,
        ``factor`` is not positive, ``weight_decay`` is negative, or the loss is unknown.

    Notes
    -----
    The arrays are copied and made read-only: a problem never changes.
    """

    X: Array
    Y: Array
    loss: str = "square"
    factor: float | None = None
    weight_decay: float = 0.0
    kind: str = field(default="regression", kw_only=True)
    mask: Array | None = field(default=None, kw_only=True, repr=False)
    logarithm: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        one_of("loss", self.loss, LOSSES)
        x, y, mask, count = getattr(self, f"_check_{self.kind}")()
        share = 0.5 if self.loss == "square" else 1.0
        factor = share / (count or 1) if self.factor is None else self.factor
        values = {
            "X": x,
            "Y": y,
            "mask": mask,
            "factor": positive("factor", factor),
            "weight_decay": non_negative("weight_decay", self.weight_decay),
        }
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, name, value)
        if self.logarithm:
            self._check_logarithm()

    def _check_regression(self) -> tuple[Any, ...]:
        x = finite_array("X", self.X, ("n", "d"))
        y = plain_array("Y", self.Y, "(n, k) or (n,)")
        y = finite_array("Y", y[:, None] if y.ndim == 1 else y, ("n", "k"))
        if len(x) != len(y):
            raise ValueError(f"Y must have one row per row of X: X has {len(x)}, Y has {len(y)}")
        if self.loss in ("logistic", "exponential") and (y.shape[1] != 1 or not np.all(np.abs(y) == 1)):
            wrong = y[np.abs(y) != 1]
            raise ValueError(
                f"Y must hold one label +1 or -1 per sample for the {self.loss} loss; got shape {y.shape}"
                + (f" and a label {wrong[0]:g}" if wrong.size else "")
            )
        if self.loss == "softmax":
            sums = y.sum(axis=1)
            if y.shape[1] < 2 or np.any(y < 0) or np.any(np.abs(sums - 1) > 1e-12):
                raise ValueError(
                    "Y must hold rows of at least two probabilities that sum to 1 for the softmax loss; "
                    f"got shape {y.shape}, entries from {y.min():g} to {y.max():g}, sums from {sums.min():g} "
                    f"to {sums.max():g}"
                )
        return x, y, None, len(x)

    def _check_logarithm(self) -> None:
        """Whether log L is offered: for losses whose least value is 0 and lies at infinity."""
        if self.kind != "regression" or self.loss == "square":
            raise ValueError(
                "problem must have the logistic, exponential or softmax loss for the logarithm of its loss; "
                f"it is of kind {self.kind!r} with the {self.loss} loss"
            )
        if self.weight_decay:
            raise ValueError(
                "problem must have weight_decay = 0 for the logarithm of its loss: with decay the minimum is finite; "
                f"got {self.weight_decay:g}"
            )
        if self.loss == "softmax" and not np.all(self.Y.max(axis=1) == 1.0):
            raise ValueError(
                "Y must be one-hot for the logarithm of the softmax loss, which soft labels keep away from 0; "
                f"got a row with largest entry {self.Y.max(axis=1).min():g}"
            )

    def _check_factorization(self) -> tuple[Any, ...]:
        return None, finite_array("M", self.Y, ("k", "d")), None, None

    def _check_sensing(self) -> tuple[Any, ...]:
        a = finite_array("A", self.X, ("m", "k", "d"))
        y = finite_array("y", self.Y, ("m",))
        if len(a) != len(y):
            raise ValueError(f"y must have one entry per matrix of A: A has {len(a)}, y has {len(y)}")
        return a, y, None, len(a)

    def _check_completion(self) -> tuple[Any, ...]:
        target = plain_array("M", self.Y, "(k, d)")
        mask = plain_array("mask", self.mask, "(k, d)")
        if mask.shape != target.shape:
            raise ValueError(f"mask must have the shape of M, {target.shape}; got {mask.shape}")
        odd = mask[(mask != 0) & (mask != 1)]
        if odd.size:
            raise ValueError(f"mask must hold only True and False (or 1 and 0); got {odd[0]!s:.80}")
        if not mask.any():
            raise ValueError("mask must mark at least one observed entry as True; got none")
        mask = mask.astype(bool)
        known = np.where(mask, target, 0.0)  # what is not observed may be NaN
        return None, finite_array("M", known, ("k", "d")), mask.astype(np.float64), None

    @classmethod
    def factorization(cls, M: ArrayLike, factor: float = 0.5, weight_decay: float = 0.0) -> Problem:
        """Matrix factorisation: L = factor ‖W − M‖²_F for the end-to-end map W.

        Parameters
        ----------
        M : array (k, d)
            Target matrix, finite.
        factor : float
            Factor > 0 of the sum over entries; default ½.
        weight_decay : float
            The coefficient μ ≥ 0; default 0.

        Returns
        -------
        Problem
            Of kind ``"factorization"``, with d inputs and k outputs; ``Y`` is M, ``X`` is None.

        Raises
        ------
        ValueError
            If M is not a finite matrix, ``factor`` is not positive or ``weight_decay`` is negative.
        """
        return cls(None, M, "square", factor, weight_decay, kind="factorization")  # type: ignore[arg-type]

    @classmethod
    def sensing(
        cls, A: ArrayLike, y: ArrayLike, factor: float | None = None, weight_decay: float = 0.0
    ) -> Problem:
        """Matrix sensing: L = factor Σ_i (⟨A_i, W⟩ − y_i)².

        Parameters
        ----------
        A : array (m, k, d)
            Measurement matrices, finite.
        y : array (m,)
            Measurements, finite.
        factor : float, optional
            Factor > 0 of the sum over measurements; default ``1 / (2 m)``.
        weight_decay : float
            The coefficient μ ≥ 0; default 0.

        Returns
        -------
        Problem
            Of kind ``"sensing"``, with d inputs and k outputs; ``X`` is A, ``Y`` is y.

        Raises
        ------
        ValueError
            If an array has the wrong shape or an entry that is not finite, the counts of A and y differ,
            ``factor`` is not positive or ``weight_decay`` is negative.
        """
        return cls(A, y, "square", factor, weight_decay, kind="sensing")  # type: ignore[arg-type]

    @classmethod
    def completion(
        cls, M: ArrayLike, mask: ArrayLike, factor: float = 0.5, weight_decay: float = 0.0
    ) -> Problem:
        """Matrix completion: L = factor Σ_{observed} (W_ab − M_ab)².

        Parameters
        ----------
        M : array (k, d)
            Target; entries that are not observed are never read and may be NaN.
        mask : array of bool (k, d)
            True (or 1) where M is observed; at least one entry.
        factor : float
            Factor > 0 of the sum over observed entries; default ½.
        weight_decay : float
            The coefficient μ ≥ 0; default 0.

        Returns
        -------
        Problem
            Of kind ``"completion"``, with d inputs and k outputs; ``Y`` is M with zeros where it is not
            observed, ``X`` is None.

        Raises
        ------
        ValueError
            If M and mask are not matrices of one shape, the mask holds other values or marks nothing, an
            observed entry is not finite, ``factor`` is not positive or ``weight_decay`` is negative.
        """
        return cls(None, M, "square", factor, weight_decay, kind="completion", mask=mask)  # type: ignore[arg-type]

    @cached_property
    def log(self) -> Problem:
        """This problem with log L in the place of L, which ``clock="loss"`` integrates.

        For the logistic, exponential and softmax losses without weight decay; softmax with one-hot labels.
        Loss, gradient and Hessian are those of log L, exact where L itself would under- or overflow.

        Raises
        ------
        ValueError
            For another loss, weight decay, or soft labels.
        """
        return replace(self, logarithm=True)

    @property
    def inputs(self) -> int:
        """Input dimension d: columns of the end-to-end map."""
        return int(self.X.shape[-1] if self.X is not None else self.Y.shape[1])

    @property
    def outputs(self) -> int:
        """Output dimension k: rows of the end-to-end map."""
        return int(
            self.X.shape[1] if self.kind == "sensing" else self.Y.shape[1 if self.X is not None else 0]
        )

    @property
    def samples(self) -> int | None:
        """Number of samples n or of measurements m; None for factorization and completion."""
        return None if self.X is None else len(self.X)

    @cached_property
    def _views(self) -> dict[Any, Any]:
        """Where objectives keep what they pack of this problem; none of its fields, which tell problems apart."""
        return {}

    @cached_property
    def second_moment(self) -> Array:
        """XᵀX (d, d), the sum over samples."""
        self._require("second_moment", "regression")
        return self.X.T @ self.X

    @cached_property
    def cross_moment(self) -> Array:
        """YᵀX (k, d), the sum over samples."""
        self._require("cross_moment", "regression")
        return self.Y.T @ self.X

    @cached_property
    def target(self) -> Array:
        """The map (k, d) at which the loss without weight decay is least.

        For regression the least-squares map of smallest norm; for factorization M.

        Raises
        ------
        ValueError
            For sensing and completion, where the data do not determine one, and for other losses than the
            square loss.
        """
        if self.kind == "factorization":
            return self.Y
        self._require("target", "regression", "factorization")
        if self.loss != "square":
            raise ValueError(f"target is defined for the square loss; this problem has the {self.loss} loss")
        return np.ascontiguousarray(np.linalg.lstsq(self.X, self.Y, rcond=None)[0].T)

    @cached_property
    def target_svd(self) -> tuple[Array, Array, Array]:
        """Singular vectors and values of the target: U (k, r), s (r,), V (d, r), r = min(k, d).

        For regression V is taken from the row space of X, as far as it reaches, also where s vanishes:
        a mode of strength zero is one that the data can see.  For a symmetric target, to rounding, the pairs are
        eigenvectors, u = v for eigenvalues ≥ 0 and u = −v below, also where singular values coincide or vanish: a
        multiple of the identity is aligned with it.  The sign of each pair is fixed by making the largest
        entry of the column of U positive.
        """
        goal, frame, rank = self.target, np.eye(self.inputs), self.inputs
        count, eps = min(goal.shape), float(np.finfo(float).eps)
        rounding = 4 * eps * count * float(np.abs(goal).max())
        if self.kind == "regression":
            _, sizes, frame = np.linalg.svd(np.linalg.qr(self.X, mode="r"))
            rank = int(np.sum(sizes > sizes[0] * max(self.X.shape) * eps))
            rounding *= max(self.X.shape) / count  # of the least-squares map
        rows, off = frame[:rank].T, frame[rank:].T
        if goal.shape[0] == goal.shape[1] and np.abs(goal - goal.T).max() <= rounding:
            values, vectors = np.linalg.eigh(rows.T @ (0.5 * (goal + goal.T)) @ rows)
            order = np.argsort(-np.abs(values), kind="stable")
            values, v = values[order], np.hstack([rows @ vectors[:, order], off])
            u = v * np.append(np.where(values < -rounding, -1.0, 1.0), np.ones(count - rank))
            s = np.abs(values)
        else:
            u, s, vt = np.linalg.svd(goal @ rows)
            u, v = u[:, :count], np.hstack([rows @ vt.T, off])[:, :count]
        s = np.append(s, np.zeros(count))[:count]
        signs = np.sign(u[np.abs(u).argmax(axis=0), np.arange(count)])
        return u * signs, s, v * signs

    def _require(self, what: str, *kinds: str) -> None:
        if self.kind not in kinds:
            raise ValueError(
                f"{what} is defined for problems of kind {' or '.join(map(repr, kinds))}; "
                f"this problem is of kind {self.kind!r}"
            )
