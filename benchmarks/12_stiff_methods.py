"""Methods for the stiff end of training: what each spends for an error, and the peers' time for it.

Problem: a two-layer linear network of width 16 (and 50) on inputs whose second moment has condition 1e5, from a
small random start to t = 1e4; error of the end state relative to DOP853 at rtol 1e-12.  Products with the Hessian
count beside gradients.  ``rkc2`` (Sommeijer, Shampine, Verwer 1998) and ``exprb43`` and ``exprb53``
(Hochbruck, Ostermann 2009; Luan, Ostermann 2014; Lanczos without orthogonalisation for every right-hand side) are
the candidates that lost; they are written plainly here, so that only their counts mean anything.  CVODE (BDF with
GMRES) is measured if scikit-sundae is installed, on the same compiled gradient, with and without our exact product.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import eigh_tridiagonal
from threadpoolctl import threadpool_limits

import gflow
from gflow.objective import Objective

END = 1e4
Array = np.ndarray


def problem(size: int) -> tuple[Any, Any, Array]:
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.standard_normal((4 * size, size)))[0]
    right = np.linalg.qr(rng.standard_normal((size, size)))[0]
    x = np.sqrt(4 * size) * (left * np.geomspace(1.0, 1e-5, size) ** 0.5) @ right.T
    y = x @ rng.standard_normal((size, size)) / np.sqrt(size)
    model = gflow.DeepLinear((size, size, size))
    return model, gflow.Problem(x, y), model.init("gaussian", 0.3 / np.sqrt(size), rng=1)


class Counted:
    """Field and product of an objective without its checks, counted."""

    def __init__(self, objective: Objective) -> None:
        self.o, self.gradients, self.products = objective, 0, 0
        self.gradient, self.hvp = objective.gradient_kernel.call, objective.hvp_kernel.call
        self.out = np.empty(objective.size)

    def field(self, t: float, theta: Array) -> Array:
        self.gradients += 1
        self.gradient(t, theta, self.o.data, self.o.dims, self.o.work, self.out)
        return -self.out

    def product(self, theta: Array, v: Array) -> Array:
        self.products += 1
        self.hvp(0.0, theta, v, self.o.data, self.o.dims, self.o.work, self.out)
        return self.out.copy()


# ---- the candidates that lost ------------------------------------------------------------------------------


def norm(error: Array, old: Array, new: Array, rtol: float, atol: float) -> float:
    return float(np.sqrt(np.mean((error / (atol + rtol * np.maximum(abs(old), abs(new)))) ** 2)))


def rkc2(c: Counted, theta: Array, rtol: float, atol: float) -> Array:
    t, h, f0, v, age, radius = 0.0, 1e-3, c.field(0.0, theta), None, 25, 0.0
    while t < END:
        if age >= 25:  # power iteration
            v = f0.copy() if v is None else v
            for _ in range(50):
                v /= np.linalg.norm(v)
                w = c.product(theta, v)
                before, radius, v = radius, float(np.linalg.norm(w)), w
                if abs(radius - before) < 0.01 * radius:
                    break
            age = 0
        h = min(h, END - t)
        s = max(2, 1 + int(math.sqrt(1.54 * h * 1.2 * radius + 1)))
        w0 = 1 + (2 / 13) / s**2
        value, slope, curve = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
        for j in range(2, s + 1):
            value.append(2 * w0 * value[j - 1] - value[j - 2])
            slope.append(2 * w0 * slope[j - 1] - slope[j - 2] + 2 * value[j - 1])
            curve.append(2 * w0 * curve[j - 1] - curve[j - 2] + 4 * slope[j - 1])
        w1 = slope[s] / curve[s]
        b = [1 / (2 * w0) ** 2] * 2 + [curve[j] / slope[j] ** 2 for j in range(2, s + 1)]
        b[0] = b[1] = b[2]
        old, now = theta, theta + b[1] * w1 * h * f0
        for j in range(2, s + 1):
            mu, nu, tilde = 2 * w0 * b[j] / b[j - 1], -b[j] / b[j - 2], 2 * b[j] * w1 / b[j - 1]
            gamma = -(1 - b[j - 1] * value[j - 1]) * tilde
            new = (1 - mu - nu) * theta + mu * now + nu * old + tilde * h * c.field(t, now) + gamma * h * f0
            old, now = now, new
        f1 = c.field(t, now)
        error = norm(0.8 * (theta - now) + 0.4 * h * (f0 + f1), theta, now, rtol, atol)
        if error <= 1:
            t, theta, f0, age = t + h, now, f1, age + 1
        h *= min(10.0, max(0.1, 0.8 * error ** (-1 / 3)))
    return theta


def phi(k: int, z: Array) -> Array:
    out, small = np.empty_like(z), abs(z) < 1
    total = np.zeros_like(z[small])
    for j in range(24, -1, -1):
        total = total * z[small] + 1 / math.factorial(j + k)
    out[small] = total
    far = z[~small]
    total = np.exp(far)
    for j in range(k):
        total = (total - 1 / math.factorial(j)) / far
    out[~small] = total
    return out


def krylov(c: Counted, theta: Array, b: Array, wanted: list[Callable[[Array], Array]], most: float) -> list:
    """Functions of the Hessian times b, by one Lanczos basis; skipped where the result is below ``most``."""
    size = float(np.linalg.norm(b))
    if size == 0 or all(size * np.max(abs(g(np.zeros(1)))) < most for g in wanted):
        return [np.zeros_like(b) for _ in wanted]
    basis, diagonal, beside, before = [b / size], [], [], []
    for m in range(1, 600):
        w = c.product(theta, basis[-1])
        diagonal.append(float(w @ basis[-1]))
        w -= diagonal[-1] * basis[-1] + (beside[-1] * basis[-2] if beside else 0.0)
        values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside))
        now = [size * vectors @ (g(values) * vectors[0]) for g in wanted]
        before.append(now)
        if m > 2:
            past = before[m - 2 - m // 8]
            if all(
                np.linalg.norm(x - np.pad(y, (0, m - y.size))) < most for x, y in zip(now, past, strict=True)
            ):
                break
        beside.append(float(np.linalg.norm(w)))
        basis.append(w / beside[-1])
    return [np.array(basis[:m]).T @ x for x in now]


def weight(h: float, *terms: tuple[int, float, float]) -> Callable[[Array], Array]:
    """The function z -> h sum a phi_k(-x h z) of terms (k, a, x)."""
    return lambda z: h * sum(a * phi(k, -x * h * z) for k, a, x in terms)


def remainder(c: Counted, theta: Array, f: Array, u: Array) -> Array:
    return c.field(0.0, u) - f + c.product(theta, u - theta)


def exprb43_step(c: Counted, theta: Array, h: float, most: float) -> tuple[Array, Array]:
    f = c.field(0.0, theta)
    half, whole = krylov(c, theta, f, [weight(h, (1, 0.5, 0.5)), weight(h, (1, 1, 1))], most)
    d = remainder(c, theta, f, theta + half)
    wanted = [weight(h, (1, 1, 1)), weight(h, (3, 16, 1)), weight(h, (4, -48, 1))]
    stage, low, high = krylov(c, theta, d, wanted, most)
    d = remainder(c, theta, f, theta + whole + stage)
    last, error = krylov(c, theta, d, [weight(h, (3, -2, 1), (4, 12, 1)), weight(h, (4, 12, 1))], most)
    return theta + whole + low + high + last, high + error


def exprb53_step(c: Counted, theta: Array, h: float, most: float) -> tuple[Array, Array]:
    f = c.field(0.0, theta)
    wanted = [weight(h, (1, 0.5, 0.5)), weight(h, (1, 0.9, 0.9)), weight(h, (1, 1, 1))]
    half, far, whole = krylov(c, theta, f, wanted, most)
    d = remainder(c, theta, f, theta + half)
    inner = weight(h, (3, 27 / 25, 0.5), (3, 729 / 125, 0.9))
    wanted = [inner, weight(h, (3, 18, 1), (4, -60, 1)), weight(h, (3, 8, 1))]
    stage, main, low = krylov(c, theta, d, wanted, most)
    d = remainder(c, theta, f, theta + far + stage)
    (last,) = krylov(c, theta, d, [weight(h, (3, -250 / 81, 1), (4, 500 / 27, 1))], most)
    return theta + whole + main + last, main + last - low


def exprb(step: Callable[..., tuple[Array, Array]]) -> Callable[[Counted, Array, float, float], Array]:
    def solve(c: Counted, theta: Array, rtol: float, atol: float) -> Array:
        t, h = 0.0, 0.1
        while t < END:
            h = min(h, END - t)
            new, error = step(c, theta, h, 0.1 * rtol * float(np.linalg.norm(theta)))
            size = norm(error, theta, new, rtol, atol)
            if size <= 1:
                t, theta = t + h, new
            h *= min(3.0, max(0.2, 0.9 * max(size, 1e-10) ** -0.25))
        return theta

    return solve


CANDIDATES = {"rkc2": rkc2, "exprb43": exprb(exprb43_step), "exprb53": exprb(exprb53_step)}


# ---- who takes part ----------------------------------------------------------------------------------------


def by_gflow(method: str) -> Callable[..., tuple[Array, dict[str, int]]]:
    def solve(case: tuple[Any, Any, Array], rtol: float) -> tuple[Array, dict[str, int]]:
        run = gflow.flow(*case, END, method=method, rtol=rtol)
        return run.end, {"gradients": run.counts["gradients"], "products": run.counts.get("products", 0)}

    return solve


def by_candidate(name: str) -> Callable[..., tuple[Array, dict[str, int]]]:
    def solve(case: tuple[Any, Any, Array], rtol: float) -> tuple[Array, dict[str, int]]:
        c = Counted(Objective(case[0], case[1]))
        end = CANDIDATES[name](c, case[2].copy(), rtol, 1e-3 * rtol)
        return end, {"gradients": c.gradients, "products": c.products}

    return solve


def by_scipy(method: str) -> Callable[..., tuple[Array, dict[str, int]]]:
    def solve(case: tuple[Any, Any, Array], rtol: float) -> tuple[Array, dict[str, int]]:
        c = Counted(Objective(case[0], case[1]))
        jacobian = {} if method == "LSODA" else {"jac": lambda t, y: -c.o.hessian(y)}
        run = solve_ivp(
            c.field, (0.0, END), case[2], method=method, rtol=rtol, atol=1e-3 * rtol, t_eval=[END], **jacobian
        )
        return run.y[:, -1], {"gradients": run.nfev, "products": c.o.size * run.njev * bool(jacobian)}

    return solve


def by_cvode(with_product: bool) -> Callable[..., tuple[Array, dict[str, int]]]:
    from sksundae.cvode import CVODE, CVODEJacTimes

    def solve(case: tuple[Any, Any, Array], rtol: float) -> tuple[Array, dict[str, int]]:
        o = Objective(case[0], case[1])
        gradient, hvp, out = o.gradient_kernel.call, o.hvp_kernel.call, np.empty(o.size)
        count = {"gradients": 0, "products": 0}

        def field(t: float, y: Array, yp: Array) -> None:
            count["gradients"] += 1
            gradient(t, y, o.data, o.dims, o.work, out)
            np.negative(out, yp)

        def product(t: float, y: Array, yp: Array, v: Array, jv: Array) -> None:
            count["products"] += 1
            hvp(t, y, v, o.data, o.dims, o.work, out)
            np.negative(out, jv)

        more = {"jactimes": CVODEJacTimes(None, product)} if with_product else {}
        options = {"method": "BDF", "linsolver": "gmres", "max_num_steps": 10**6, **more}
        run = CVODE(field, rtol=rtol, atol=1e-3 * rtol, **options).solve(np.array([0.0, END]), case[2])
        return run.y[-1], count

    return solve


def measure(
    solve: Any, case: tuple[Any, Any, Array], reference: Array, rtol: float, seconds: list[float]
) -> dict[str, Any]:
    start = time.perf_counter()
    end, counts = solve(case, rtol)
    seconds.append(time.perf_counter() - start)
    error = float(np.linalg.norm(end - reference) / np.linalg.norm(reference))
    return {"rtol": rtol, "error": error, **{name: int(count) for name, count in counts.items()}}


def main() -> None:
    options = common.options(__doc__ or "")
    ours = {name: by_gflow(name) for name in ("auto", "bdf")}
    peers: dict[str, Callable[..., tuple[Array, dict[str, int]]]] = {}
    try:
        peers = {"cvode": by_cvode(False), "cvode with product": by_cvode(True)}
    except ImportError:
        print("scikit-sundae is not installed: no figures of CVODE")
    others = {name: by_candidate(name) for name in CANDIDATES}
    others |= {f"scipy {name}": by_scipy(name) for name in ("LSODA", "BDF", "Radau")}
    rtols = (1e-3, 1e-5) if options.quick else (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
    rounds = 1 if options.quick else 3
    results: dict[str, Any] = {}
    with threadpool_limits(1):
        for size in (16,) if options.quick else (16, 50):
            case = problem(size)
            reference = gflow.flow(*case, END, method="dop853", rtol=1e-12, max_steps=10**7).end
            rows = []

            interleaved = ours | peers
            for solve in interleaved.values():
                measure(solve, case, reference, 1e-2, [])  # compile and warm up
            for rtol in rtols:
                seconds: dict[str, list[float]] = {name: [] for name in interleaved}
                for _ in range(rounds):
                    found = {
                        n: measure(solve, case, reference, rtol, seconds[n])
                        for n, solve in interleaved.items()
                    }
                rows += [
                    {"method": n, **row, "ms": 1e3 * statistics.median(seconds[n])}
                    for n, row in found.items()
                ]
                for row in rows[-len(found) :]:
                    print(size, row, flush=True)
            for name, solve in others.items() if size == 16 else ():
                for rtol in (
                    rtols[:2] if options.quick else rtols[: 4 if "43" in name or name == "rkc2" else 6]
                ):
                    once: list[float] = []
                    row = measure(solve, case, reference, rtol, once)
                    rows.append({"method": name, **row, "ms": 1e3 * once[0]})
                    print(size, rows[-1], flush=True)
            results[f"width {size}"] = rows
    common.write(options.out, results)


if __name__ == "__main__":
    main()
