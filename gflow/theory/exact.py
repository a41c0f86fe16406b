r"""Exact two-layer linear networks: the closed form of zero-balanced starts, and what follows from it.

W_1' = W_2ᵀE, W_2' = E W_1ᵀ, E = M − W_2 W_1 (white inputs, L = ½ ‖W_2W_1 − M‖²; :mod:`gflow.theory.linear` says how
time scales), W_1 (h, d), W_2 (k, h), λ-balanced: W_2ᵀW_2 − W_1W_1ᵀ = λ I.  All of it is in Q = [W_1ᵀ; W_2] and

    F = [[−λ/2, Mᵀ], [M, λ/2]],    Q' = F Q − ½ Q QᵀQ,

whose general solution is :func:`gflow.theory.linear.riccati`; its sign of λ holds here.  With the singular triples (u, s, v)
of M the eigenvectors of F are [(1 − H) v; (1 + H) u] and [(1 + H) v; −(1 − H) u], with eigenvalues ± √(s² + λ²/4),
H = (√(λ² + 4s²) − 2s) / λ; vectors without a partner have −λ/2 (inputs) and λ/2 (outputs).

From almost every start QQᵀ → 2F₊, F₊ the positive part of F, if there are as many hidden units as positive eigenvalues.
It does exactly if P₊ᵀQ(0) has full row rank, P₊ an eigenbasis of F₊: :func:`overlap`, :func:`limit`.
For λ = 0 and W_2W_1 = U S Vᵀ that matrix is ½ √2 Bᵀ √S Rᵀ, B = UᵀU_s + VᵀV_s, R
orthonormal.  For d = k and full ranks B is singular exactly where det W(0) det M < 0: B = UᵀU_s (I + O) with O orthogonal
and det O = −1, which has the eigenvalue −1.  The flow then goes to a saddle: with nᵀP₊ᵀQ(0) = 0 the mode that is not learned is
the weakest with an entry in n, in general that of s_min, for a loss of ½ s_min².

Sources: arXiv 2409.14623; the zero-balanced form: Braun, Dominé, Fitzgerald, Saxe (2022), after Fukumizu (1998).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, number, of_type, positive_int
from gflow.models.linear import Symmetric, split_strength
from gflow.problem import Problem
from gflow.theory.arguments import broadcast, real_array
from gflow.theory.linear.lambda_balanced import (
    checked_layers,
    required_balance,
    riccati_matrix,
    solve_riccati,
)
from gflow.theory.linear.layers import balance_defect, norm2, relative
from gflow.theory.linear.mode import mode_strength
from gflow.theory.prediction import Hypothesis, Prediction, Refused, times_of

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


# ---- zero-balanced starts ----------------------------------------------------------------------------------


class _Frames(NamedTuple):
    """Compact singular triples of target and start, and B, C."""

    left: Array  # of the target
    s: Array
    right: Array
    U: Array  # of the start
    S: Array
    V: Array
    B: Array
    C: Array


def _frames(target: Array, w: Array) -> _Frames:
    left, s, right = np.linalg.svd(target, full_matrices=False)
    u, size, v = np.linalg.svd(w, full_matrices=False)
    a, b = u.T @ left, v @ right.T
    return _Frames(left, s, right.T, u, size, v.T, a + b, a - b)


def alignment(target: ArrayLike, W: ArrayLike) -> tuple[Array, Array]:
    """B = UᵀU_s + VᵀV_s and C = UᵀU_s − VᵀV_s, (r, r) each, of target = U_s S_s V_sᵀ and W = U S Vᵀ, r = min(k, d).

    Parameters
    ----------
    target, W : array (k, d)
        Signs of singular vectors are those of ``np.linalg.svd``: only |det B| and its singular values have a meaning.

    Raises
    ------
    ValueError
        If the shapes differ or an entry is not finite.
    """
    goal = finite_array("target", target, ("k", "d"))
    found = _frames(goal, finite_array("W", W, goal.shape))
    return found.B, found.C


def conditions(target: ArrayLike, W1: ArrayLike, W2: ArrayLike) -> tuple[Hypothesis, ...]:
    """What the closed form of zero-balanced starts supposes, measured.

    Parameters
    ----------
    target : array (k, d)
    W1 : array (h, d)
    W2 : array (k, h)

    Returns
    -------
    tuple of Hypothesis
        Zero balance; no bottleneck, h ≥ min(d, k); full ranks of target and start and an invertible B, with
        defects ε times the condition number (1 / s_min for B, whose largest singular value is at most 2).

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    goal, w1, w2 = checked_layers(target, W1, W2)
    f, count = _frames(goal, w2 @ w1), min(goal.shape)

    def condition(values: Array) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.nan_to_num(_EPS * values[0] / values[-1], nan=np.inf, posinf=np.inf))

    spread = np.append(1.0, np.linalg.svd(f.B, compute_uv=False)[-1])
    return (
        Hypothesis("zero-balanced start", balance_defect([w1, w2])),
        Hypothesis("no bottleneck (defect: missing hidden units)", float(max(count - len(w1), 0))),
        Hypothesis("target of full rank (defect: rounding × condition)", condition(f.s)),
        Hypothesis("start of full rank (defect: rounding × condition)", condition(f.S)),
        Hypothesis("B invertible (defect: rounding / least singular value)", condition(spread), 1e-6),
    )


def zero_balanced(
    t: ArrayLike, target: ArrayLike, W1: ArrayLike, W2: ArrayLike, force: bool = False
) -> Array:
    """Q Qᵀ along the flow from a zero-balanced start, in terms of singular vectors: Braun's closed form.

    Parameters
    ----------
    t : array (T,)
        Finite times ≥ 0.
    target : array (k, d)
    W1 : array (h, d)
    W2 : array (k, h)
    force : bool
        Compute the formula although one of the :func:`conditions` fails.

    Returns
    -------
    qq : array (T, d + k, d + k)
        As :func:`gflow.theory.linear.riccati`.

    Raises
    ------
    Refused
        If a condition fails, with its number.
    ValueError
        If shapes do not fit or a time is negative.

    Notes
    -----
    With B, C = UᵀU_s ± VᵀV_s, e = e^(−st), M = e CᵀB⁻ᵀ e and the projections on what the target's vectors leave out.  It
    holds no growing exponential.  :func:`gflow.theory.linear.riccati` is the same where both apply, and needs none of the
    conditions but the balance.
    """
    goal, w1, w2 = checked_layers(target, W1, W2)
    times = times_of(t)
    failed = [str(h) for h in conditions(goal, w1, w2) if not h.holds]
    if failed and not force:
        raise Refused(
            f"the closed form of zero-balanced starts (arXiv 2409.14623) is refused: {'; '.join(failed)}. "
            "gflow.theory.linear.riccati needs a λ-balanced start only; force=True computes the formula all the same."
        )
    f = _frames(goal, w2 @ w1)
    inverse = np.linalg.inv(f.B)  # B^-1; B^-T is its transpose
    off_right = f.V - f.right @ (f.right.T @ f.V)  # zero unless d > k
    off_left = f.U - f.left @ (f.left.T @ f.U)
    aside = f.V.T @ off_right + f.U.T @ off_left
    eye = np.eye(len(f.s))
    out = np.empty((len(times), sum(goal.shape), sum(goal.shape)))
    for i, time in enumerate(times):
        e = np.exp(-f.s * time)
        right = inverse.T * e  # B^-T e
        left = e[:, None] * inverse  # e B^-1
        m = e[:, None] * f.C.T @ right
        z = np.vstack([
            f.right @ (eye - m) + 2 * off_right @ right,
            f.left @ (eye + m) + 2 * off_left @ right,
        ])  # fmt: skip
        fade = -np.expm1(-2 * f.s * time) / f.s
        inner = 4 * left / f.S @ right + np.diag(fade) + left @ f.C * fade @ f.C.T @ right
        inner += 4 * time * left @ aside @ right
        out[i] = z @ np.linalg.solve(inner, z.T)
    return out


def aligned_strength(t: ArrayLike, s: ArrayLike, s0: ArrayLike, b: ArrayLike, c: ArrayLike) -> Array:
    """Strength of one mode of a zero-balanced start along the target's singular vectors: B, C diagonal.

    Parameters
    ----------
    t : array
        Finite times ≥ 0.
    s, s0 : array
        Singular values > 0 of target and start.
    b, c : array
        Diagonal entries of B and C, to 1e-6: (±2, 0) where both vectors point alike, (0, ±2) where one is turned round.

    Returns
    -------
    u : array
        Of the shape to which the arguments broadcast.

    Raises
    ------
    ValueError
        If a time is negative, a singular value is not above 0, or b and c are other than that.

    Notes
    -----
    (s0 b² s − s0 c² s e⁴) / (4 s e² + s0 b² (1 − e²) + s0 c² (e² − e⁴)), e = e^(−st), which becomes 0/0 where one vector
    is turned round.  It is :func:`gflow.theory.linear.mode_strength` at depth 2 from +s0 or, turned round, from −s0.
    """
    times, target, size, first, second = broadcast(
        t=real_array("t", t, 0.0),
        s=real_array("s", s),
        s0=real_array("s0", s0),
        b=real_array("b", b),
        c=real_array("c", c),
    )
    for name, values in (("s", target), ("s0", size)):
        if np.any(values <= 0):
            raise ValueError(f"{name} must hold singular values > 0; got {values.min():g}")
    less, more = np.sort(np.abs([first, second]), axis=0)
    odd = float(np.max(np.maximum(less, np.abs(more - 2)), initial=0.0))
    if odd > 1e-6:
        raise ValueError(f"b and c must be ±2 and 0, or 0 and ±2; they miss it by {odd:.2g}")
    return mode_strength(times, target, np.where(np.abs(first) > 1, size, -size), 2)


# ---- λ-balanced starts -------------------------------------------------------------------------------------


def rates(s: ArrayLike, balance: float, inputs: int, outputs: int) -> Array:
    """Eigenvalues (d + k,) of F, ascending.

    Parameters
    ----------
    s : array (min(d, k),)
        Singular values of the target.
    balance : float
        λ.
    inputs, outputs : int
        d and k.

    Returns
    -------
    array (d + k,)
        ± √(s² + λ²/4), and sgn(k − d) λ/2, |k − d| times.

    Raises
    ------
    ValueError
        If an argument is not of its kind or shape.
    """
    d, k, half = (
        positive_int("inputs", inputs),
        positive_int("outputs", outputs),
        0.5 * number("balance", balance),
    )
    pairs = np.hypot(real_array("s", finite_array("s", s, (min(d, k),)), 0.0), half)
    alone = np.full(abs(k - d), np.sign(k - d) * half)
    return np.sort(np.concatenate([pairs, -pairs, alone]))


def mixing(s: ArrayLike, balance: float) -> tuple[Array, Array]:
    """H and A = 1/√(1 + H²): the unit eigenvectors of F are A/√2 [(1 − H) v; (1 + H) u] and A/√2 [(1 + H) v; −(1 − H) u].

    Parameters
    ----------
    s : array
        Singular values ≥ 0 of the target.
    balance : float
        λ.

    Returns
    -------
    H, A : array
        H = (√(λ² + 4s²) − 2s) / λ, here without its cancellation and 0 at λ = 0.

    Raises
    ------
    ValueError
        If a singular value is negative or a number not finite.
    """
    lam, twice = number("balance", balance), 2 * real_array("s", s, 0.0)
    size = np.hypot(lam, twice) + twice
    h = np.divide(lam, size, out=np.zeros_like(size), where=size > 0)
    return h[()], (1 / np.hypot(1.0, h))[()]


def factor_values(s: ArrayLike, balance: float) -> tuple[Array, Array]:
    """Singular values of W_1 and of W_2 in a λ-balanced network, for each singular value s of W_2W_1.

    Parameters
    ----------
    s : array
        Singular values ≥ 0 of the end-to-end map.
    balance : float
        λ.

    Returns
    -------
    s1, s2 : array
        s2² − s1² = λ and s1 s2 = s: √((√(λ² + 4s²) ∓ λ) / 2), the smaller without cancellation.

    Raises
    ------
    ValueError
        If a singular value is negative or a number not finite.
    """
    first, second = split_strength(real_array("s", s, 0.0), number("balance", balance))
    return first[()], second[()]


def _leading(target: Array, balance: float, hidden: int) -> tuple[Array, Array]:
    """The positive eigenvalues of F, or the ``hidden`` largest of them, and their eigenvectors."""
    mu, basis = np.linalg.eigh(riccati_matrix(target, balance))
    count = min(int(np.sum(mu > len(mu) * _EPS * np.abs(mu).max())), hidden)
    return mu[len(mu) - count :], basis[:, len(mu) - count :]


def overlap(target: ArrayLike, W1: ArrayLike, W2: ArrayLike) -> Array:
    """Singular values of PᵀQ(0) over ‖Q(0)‖₂, all above 0 where QQᵀ goes to its :func:`limit`.

    Parameters
    ----------
    target : array (k, d)
    W1 : array (h, d)
    W2 : array (k, h)
        λ-balanced start.

    Returns
    -------
    array (r,)
        Descending; P holds the eigenvectors of the positive eigenvalues of F, or of the h largest of them.

    Raises
    ------
    ValueError
        If shapes do not fit, or the start is not λ-balanced (to 1e-6).
    """
    goal, w1, w2 = checked_layers(target, W1, W2)
    start = np.vstack([w1.T, w2])
    size, balance = norm2(start), required_balance(w1, w2)
    if abs(balance) <= 4 * len(start) * _EPS * size**2:  # rounding, which would pass for directions to learn
        balance = 0.0
    values = np.linalg.svd(_leading(goal, balance, len(w1))[1].T @ start, compute_uv=False)
    return np.asarray(values / size if size > 0 else values, dtype=np.float64)


def limit(target: ArrayLike, balance: float, hidden: int) -> Array:
    """Limit of Q Qᵀ (d + k, d + k) where :func:`overlap` does not vanish: 2F₊, or its best approximation of rank h.

    Parameters
    ----------
    target : array (k, d)
    balance : float
        λ.
    hidden : int
        h.  Behind a bottleneck the limit is unique only if the h-th positive eigenvalue of F exceeds the next.

    Returns
    -------
    qq : array (d + k, d + k)
        With λ = 0 and enough hidden units: W_1ᵀW_1 = V_s S Vₛᵀ, W_2W_2ᵀ = U_s S Uₛᵀ; with fewer the best approximation of
        the target of rank h is learned.  In general W_1ᵀW_1 and W_2W_2ᵀ have the squares of :func:`factor_values`,
        and |λ| on what the larger side has beyond the smaller, if λ points to it and units are left.

    Raises
    ------
    ValueError
        If an argument is not of its kind, or the limit is not unique.
    """
    goal, units = finite_array("target", target, ("k", "d")), positive_int("hidden", hidden)
    mu, basis = _leading(goal, number("balance", balance), units + 1)
    if len(mu) > units:
        if mu[1] - mu[0] <= len(basis) * _EPS * mu[-1]:
            raise ValueError(
                f"hidden must not divide equal eigenvalues of F, or the limit depends on the start: number {units} is "
                f"{mu[1]:g}, and so is the next"
            )
        mu, basis = mu[1:], basis[:, 1:]
    return basis * (2 * mu) @ basis.T


def tangent_kernel(qq: ArrayLike, X: ArrayLike) -> Array:
    """Neural tangent kernel of a two-layer network from Q Qᵀ.

    Parameters
    ----------
    qq : array (..., d + k, d + k)
        Q Qᵀ, as :func:`gflow.theory.linear.riccati` returns it.
    X : array (n, d)
        Inputs.

    Returns
    -------
    array (..., n k, n k)
        (X W_1ᵀW_1 Xᵀ) ⊗ I + (X Xᵀ) ⊗ W_2W_2ᵀ: sample by sample, the k outputs of a sample together, as
        :func:`gflow.observe.ntk`.

    Raises
    ------
    ValueError
        If shapes do not fit or entries are not finite.
    """
    x, square = finite_array("X", X, ("n", "d")), real_array("qq", qq)
    n, d = x.shape
    if square.ndim < 2 or square.shape[-1] != square.shape[-2] or square.shape[-1] <= d:
        raise ValueError(f"qq must have shape (..., d + k, d + k) with d = {d} and k > 0; got {square.shape}")
    k = square.shape[-1] - d
    first, second = x @ square[..., :d, :d] @ x.T, square[..., d:, d:]
    kernel = np.einsum("...ij,ab->...iajb", first, np.eye(k)) + np.einsum(
        "ij,...ab->...iajb", x @ x.T, second
    )
    return kernel.reshape(*square.shape[:-2], n * k, n * k)


def kernel_distance(first: ArrayLike, second: ArrayLike) -> Array:
    """1 − ⟨K, K'⟩ / (‖K‖ ‖K'‖) of two kernels (..., m, m): 0 if they are parallel, dimensionless.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a kernel is zero or not finite.
    """
    directions = []
    for name, value in (("first", first), ("second", second)):
        kernel = real_array(name, value)
        if kernel.ndim < 2 or kernel.shape[-2:] != np.shape(first)[-2:]:
            raise ValueError(f"{name} must hold matrices (..., m, m) of one shape; got shape {kernel.shape}")
        size = np.linalg.norm(kernel, axis=(-2, -1), keepdims=True)
        if np.any(size == 0):
            raise ValueError(f"{name} must hold no zero kernel: it has no direction")
        directions.append(kernel / size)
    a, b = broadcast(first=directions[0], second=directions[1])
    return 0.5 * np.sum((a - b) ** 2, axis=(-2, -1))  # 1 − cosine, without its cancellation


# ---- symmetric factorisation, and how fast imbalance makes any start learn ---------------------------------


def symmetric(t: ArrayLike, target: ArrayLike, U: ArrayLike) -> Array:
    """U Uᵀ along the flow U' = (M − UUᵀ) U with a symmetric M, from any U.

    Parameters
    ----------
    t : array (T,)
        Finite times ≥ 0, in units in which L = ¼ ‖UUᵀ − M‖²: those of the flow times 4 · factor.
    target : array (n, n)
        M, of any rank and sign.
    U : array (n, r)
        Start.

    Returns
    -------
    array (T, n, n)

    Raises
    ------
    ValueError
        If shapes do not fit, a time is negative, or M is not symmetric.

    Notes
    -----
    The flow of √2 U is that of Q, see the module, with F = M.  Source: Tarmoun, França, Haeffele, Vidal (2021).
    """
    u = finite_array("U", U, ("n", "r"))
    goal = finite_array("target", target, (len(u), len(u)))
    if not np.array_equal(goal, goal.T):
        raise ValueError(f"target must be symmetric; it is not by {np.abs(goal - goal.T).max():.2g}")
    return 0.5 * solve_riccati(times_of(t), goal, np.sqrt(2) * u)


def symmetric_map(model: Symmetric, problem: Problem, theta0: ArrayLike, force: bool = False) -> Prediction:
    """End-to-end map (T, n, n) of the symmetric factorisation U Uᵀ from any start: :func:`symmetric`.

    Parameters
    ----------
    model : Symmetric
    problem : Problem
        A factorisation of a symmetric matrix.
    theta0 : array (P,)
        Start.
    force : bool
        Compute the formula although a hypothesis fails, for the symmetric part of the matrix.

    Returns
    -------
    Prediction
        Of the observable ``"end_to_end"``.

    Raises
    ------
    ValueError
        If the model is not Symmetric, or the problem is no factorisation that fits it.
    """
    of_type("model", model, Symmetric, "a Symmetric network")
    if not isinstance(problem, Problem) or problem.kind != "factorization":
        raise ValueError(f"problem must be a factorisation, Problem.factorization(M); got {problem!r:.60}")
    model.check_problem(problem, model.dimension, model.dimension)
    (u,) = model.unpack(finite_array("theta0", theta0, (model.size,)))
    goal = 0.5 * (problem.Y + problem.Y.T)
    size = norm2(problem.Y)
    skew = relative(norm2(problem.Y - goal), size)
    rate = 4 * float(problem.factor or 0.0)
    decay = problem.weight_decay / (rate * size) if size > 0 else float(problem.weight_decay > 0)
    return Prediction(
        "end_to_end",
        (Hypothesis("symmetric target", skew), Hypothesis("no weight decay", decay)),
        "Tarmoun, França, Haeffele, Vidal (2021)",
        lambda t: symmetric(rate * t, goal, u),
        forced=force,
    )


def imbalance_rate(W1: ArrayLike, W2: ArrayLike) -> float:
    """c with L(t) ≤ L(0) e^(−2ct) for any target, from any start of two layers.

    Parameters
    ----------
    W1 : array (h, d)
    W2 : array (k, h)
        Start.

    Returns
    -------
    float
        [λ_k(Λ)]₊ + [λ_d(−Λ)]₊, λ_j the j-th largest eigenvalue and Λ = W_2ᵀW_2 − W_1W_1ᵀ, which is conserved; 0, and
        the bound says nothing, unless Λ has k eigenvalues above 0 or d below.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Notes
    -----
    L' = −‖W_2ᵀE‖² − ‖E W_1ᵀ‖² ≤ −2L (λ_k(W_2ᵀW_2) + λ_d(W_1W_1ᵀ)), W_2ᵀW_2 ≥ Λ and W_1W_1ᵀ ≥ −Λ.  Sources: Tarmoun et al.
    (2021); arXiv 2105.06351.
    """
    w1 = finite_array("W1", W1, ("h", "d"))
    w2 = finite_array("W2", W2, ("k", w1.shape[0]))
    values = np.linalg.eigvalsh(w2.T @ w2 - w1 @ w1.T)  # ascending
    (k, h), d = w2.shape, w1.shape[1]
    above = float(values[h - k]) if k <= h else 0.0
    below = float(-values[d - 1]) if d <= h else 0.0
    return max(above, 0.0) + max(below, 0.0)
