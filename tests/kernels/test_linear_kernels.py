"""Loss, gradient and Hessian-vector product of the linear networks against naive matrix calculus."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gflow
from gflow.kernels import linear as kernels
from gflow.objective import Objective

EPS = np.finfo(float).eps


class Naive:
    """The same functions, written from the definitions: products of whole matrices, layer by layer."""

    def __init__(self, model, problem):
        self.model, self.problem = model, problem

    def layers(self, theta):
        parts, start = [], 0
        for rows, cols in self.model.shapes:
            parts.append(theta[start : start + rows * cols].reshape(rows, cols))
            start += rows * cols
        return parts

    def map(self, theta):
        parts = self.layers(theta)
        return (
            parts[0] @ parts[0].T
            if isinstance(self.model, gflow.Symmetric)
            else product(parts, len(parts[0].T))
        )

    def map_tangent(self, theta, v):
        a, b = self.layers(theta), self.layers(v)
        if isinstance(self.model, gflow.Symmetric):
            return b[0] @ a[0].T + a[0] @ b[0].T
        return product_tangent(a, b, len(a[0].T))

    def residual(self, w):
        """What is squared and summed, as a function that is affine in the map."""
        p = self.problem
        if p.kind == "regression":
            return np.einsum("ab,ib->ia", w, p.X) - p.Y
        if p.kind == "sensing":
            return np.einsum("iab,ab->i", p.X, w) - p.Y
        return (w - p.Y) * (1.0 if p.mask is None else p.mask)

    def pull(self, residual):
        """2 factor times the adjoint of the residual's linear part: the derivative of the loss by the map."""
        p = self.problem
        if p.kind == "regression":
            return 2 * p.factor * np.einsum("ia,ib->ab", residual, p.X)
        if p.kind == "sensing":
            return 2 * p.factor * np.einsum("i,iab->ab", residual, p.X)
        return 2 * p.factor * residual * (1.0 if p.mask is None else p.mask)

    def loss(self, theta):
        p = self.problem
        return p.factor * np.sum(self.residual(self.map(theta)) ** 2) + 0.5 * p.weight_decay * theta @ theta

    def gradient(self, theta):
        g, parts = self.pull(self.residual(self.map(theta))), self.layers(theta)
        if isinstance(self.model, gflow.Symmetric):
            blocks = [(g + g.T) @ parts[0]]
        else:
            blocks = []
            for j, w in enumerate(parts):
                above, below = product(parts[j + 1 :], len(w)), product(parts[:j], len(parts[0].T))
                blocks.append(np.einsum("ca,cd,bd->ab", above, g, below))
        return np.concatenate([b.ravel() for b in blocks]) + self.problem.weight_decay * theta

    def hvp(self, theta, v):
        w, dw = self.map(theta), self.map_tangent(theta, v)
        zero = self.residual(np.zeros_like(w))
        g, dg = self.pull(self.residual(w)), self.pull(self.residual(dw) - zero)
        a, b = self.layers(theta), self.layers(v)
        if isinstance(self.model, gflow.Symmetric):
            blocks = [(dg + dg.T) @ a[0] + (g + g.T) @ b[0]]
        else:
            blocks = []
            for j, layer in enumerate(a):
                k, d = len(layer), len(a[0].T)
                above, below = product(a[j + 1 :], k), product(a[:j], d)
                d_above, d_below = (
                    product_tangent(a[j + 1 :], b[j + 1 :], k),
                    product_tangent(a[:j], b[:j], d),
                )
                blocks.append(d_above.T @ g @ below.T + above.T @ dg @ below.T + above.T @ g @ d_below.T)
        return np.concatenate([x.ravel() for x in blocks]) + self.problem.weight_decay * v


def product(parts, size):
    """parts[-1] @ ... @ parts[0], the identity of the given size if there are none."""
    out = np.eye(size)
    for part in parts:
        out = part @ out
    return out


def product_tangent(parts, tangents, size):
    """Derivative of :func:`product`: one factor at a time replaced by its tangent."""
    total = np.zeros_like(product(parts, size))
    for j in range(len(parts)):
        total = total + product([*parts[:j], tangents[j], *parts[j + 1 :]], size)
    return total


def make_problem(kind, inputs, outputs, samples, weight_decay, rng):
    if kind == "regression":
        x, y = rng.standard_normal((samples, inputs)), rng.standard_normal((samples, outputs))
        return gflow.Problem(x, y, factor=0.7, weight_decay=weight_decay)
    target = rng.standard_normal((outputs, inputs))
    if kind == "factorization":
        return gflow.Problem.factorization(target, weight_decay=weight_decay)
    if kind == "sensing":
        a = rng.standard_normal((samples, outputs, inputs))
        return gflow.Problem.sensing(a, rng.standard_normal(samples), weight_decay=weight_decay)
    mask = rng.random((outputs, inputs)) < 0.6
    mask[0, 0] = True
    return gflow.Problem.completion(np.where(mask, target, np.nan), mask, weight_decay=weight_decay)


@st.composite
def networks(draw, smallest=1, widest=5, most_samples=9):
    """A model, a problem that fits it, parameters and a direction."""
    sizes, samples = st.integers(smallest, widest), st.integers(1, most_samples)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        model = gflow.DeepLinear(tuple(draw(st.lists(sizes, min_size=2, max_size=5))))
        inputs, outputs = model.widths[0], model.widths[-1]
    else:
        model = gflow.Symmetric(draw(sizes), draw(sizes))
        inputs = outputs = model.dimension
    kind = draw(st.sampled_from(["regression", "factorization", "sensing", "completion"]))
    decay = draw(st.sampled_from([0.0, 0.3]))
    problem = make_problem(kind, inputs, outputs, draw(samples), decay, rng)
    return model, problem, rng.standard_normal(model.size), rng.standard_normal(model.size)


def check_against_naive(model, problem, theta, v):
    naive, objective = Naive(model, problem), Objective(model, problem)
    # rounding is relative to the sum of absolute values, which absolute entries bound from above
    size = Naive(model, absolute(problem))
    room = 50 * EPS * model.size
    loss, gradient, hvp = naive.loss(theta), naive.gradient(theta), naive.hvp(theta, v)
    scales = size.loss(abs(theta)), size.gradient(abs(theta)), size.hvp(abs(theta), abs(v))
    assert abs(objective.loss(theta) - loss) <= room * scales[0]
    np.testing.assert_allclose(objective.gradient(theta), gradient, rtol=0, atol=room * np.max(scales[1]))
    np.testing.assert_allclose(objective.hvp(theta, v), hvp, rtol=0, atol=room * np.max(scales[2]))
    np.testing.assert_allclose(objective.hessian(theta) @ v, hvp, rtol=0, atol=room * np.max(scales[2]))


def absolute(problem):
    """The problem with |X| and -|Y|, at which nothing cancels."""
    x = None if problem.X is None else abs(problem.X)
    return gflow.Problem(
        x,
        -abs(problem.Y),
        "square",
        problem.factor,
        problem.weight_decay,
        kind=problem.kind,
        mask=problem.mask,
    )


@given(networks())
def test_kernels_equal_matrix_calculus(network):
    check_against_naive(*network)


@given(networks(smallest=6, widest=17, most_samples=40))
def test_kernels_equal_matrix_calculus_beyond_the_small_loops(network):
    check_against_naive(*network)


@pytest.mark.parametrize("samples", [4, 200], ids=["n < d", "n > d"])
@pytest.mark.parametrize("model", [gflow.DeepLinear((40, 33, 50, 40)), gflow.Symmetric(40, 30)], ids=str)
def test_kernels_equal_matrix_calculus_where_blas_multiplies(model, samples):
    rng = np.random.default_rng(0)
    problem = make_problem("regression", 40, 40, samples, 0.1, rng)
    check_against_naive(model, problem, rng.standard_normal(model.size), rng.standard_normal(model.size))


@given(networks())
def test_gradient_and_hvp_equal_central_differences(network):
    model, problem, theta, v = network
    objective = Objective(model, problem)
    theta, v = theta / np.sqrt(len(theta)), v / np.linalg.norm(v)
    h = EPS ** (1 / 3)
    ahead, behind = theta + h * v, theta - h * v
    # both errors, h^2 and eps / h, are eps^(2/3) in units of the function and its derivatives
    room = 1e3 * EPS ** (2 / 3)
    values = objective.loss(ahead), objective.loss(behind)
    slope = objective.gradient(theta) @ v
    assert abs((values[0] - values[1]) / (2 * h) - slope) <= room * (abs(slope) + sum(values))
    slopes = objective.gradient(ahead), objective.gradient(behind)
    bend = objective.hvp(theta, v)
    scale = np.linalg.norm(bend) + np.linalg.norm(slopes[0]) + sum(values)
    assert np.linalg.norm((slopes[0] - slopes[1]) / (2 * h) - bend) <= room * scale


@given(networks())
def test_the_hessian_is_symmetric(network):
    model, problem, theta, v = network
    objective = Objective(model, problem)
    u = np.roll(v, 1) + 0.1
    one, other = u @ objective.hvp(theta, v), v @ objective.hvp(theta, u)
    room = (
        100 * EPS * model.size * Naive(model, absolute(problem)).hvp(abs(theta), abs(v)).max() * abs(u).sum()
    )
    assert abs(one - other) <= room


@pytest.mark.parametrize(
    ("samples", "objective"), [(3, kernels.SAMPLES), (4, kernels.SAMPLES), (5, kernels.COVARIANCE)]
)
def test_the_covariance_serves_where_samples_outnumber_inputs(samples, objective):
    problem = make_problem("regression", 4, 2, samples, 0.0, np.random.default_rng(0))
    assert Objective(gflow.DeepLinear((4, 2)), problem).dims[0] == objective


def test_kernels_write_nowhere_but_to_their_output():
    """NaN in the scratch at the start, and guards around it, change nothing."""
    rng = np.random.default_rng(5)
    for kind in ("regression", "factorization", "sensing", "completion"):
        for model in (gflow.DeepLinear((4, 6, 2, 4)), gflow.Symmetric(4, 6)):
            for samples in (3, 30):
                objective = Objective(model, make_problem(kind, 4, 4, samples, 0.1, rng))
                theta, v = rng.standard_normal((2, model.size))
                wanted = objective.loss(theta), objective.gradient(theta), objective.hvp(theta, v)
                wide = np.full(len(objective.work) + 64, np.nan)
                work = wide[32:-32]
                gradient, product = np.full(model.size, np.nan), np.full(model.size, np.nan)
                arguments = objective.data, objective.dims, work
                assert model.loss(0.0, theta, *arguments) == wanted[0]
                work[:] = np.nan
                model.gradient(0.0, theta, *arguments, gradient)
                work[:] = np.nan
                model.hvp(0.0, theta, v, *arguments, product)
                np.testing.assert_array_equal(gradient, wanted[1])
                np.testing.assert_array_equal(product, wanted[2])
                assert np.isnan(wide[:32]).all() and np.isnan(wide[-32:]).all()


@pytest.mark.parametrize("distance", [2.0**-10, 2.0**-30])
@pytest.mark.parametrize("model", [gflow.DeepLinear((6, 3)), gflow.Symmetric(6, 6)], ids=str)
def test_loss_near_zero_does_not_cancel(model, distance):
    """Integer data, on which numpy's residuals are exact: an error of eps |Y|, not of eps |Y|^2."""
    rng = np.random.default_rng(6)
    x = rng.integers(-8, 9, (40, 6)).astype(float)
    fit = rng.integers(-8, 9, (model.shapes[0])).astype(float)
    off = fit + distance * rng.integers(-3, 4, fit.shape)
    best = fit @ fit.T if isinstance(model, gflow.Symmetric) else fit
    problem = gflow.Problem(x, x @ best.T, factor=0.5)
    w = off @ off.T if isinstance(model, gflow.Symmetric) else off
    residual = x @ (w - best).T
    loss = 0.5 * np.sum(residual**2)
    room = 20 * EPS * np.linalg.norm(abs(x) @ abs(off.T)) / np.linalg.norm(residual)
    if isinstance(model, gflow.Symmetric):
        room *= np.linalg.norm(off)
    assert abs(Objective(model, problem).loss(off.ravel()) / loss - 1) <= room


def test_loss_above_a_noise_floor_equals_the_residuals():
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((50, 5)), rng.standard_normal((50, 3))
    problem = gflow.Problem(x, y)
    model = gflow.DeepLinear((5, 4, 3))
    theta = model.init("gaussian", scale=0.4, rng=1)
    direct = np.sum((x @ model.end_to_end(theta).T - y) ** 2) / 100
    assert Objective(model, problem).loss(theta) == pytest.approx(direct, rel=50 * EPS)
    at_best = np.sum((x @ problem.target.T - y) ** 2) / 100
    single = Objective(gflow.DeepLinear((5, 3)), problem)
    assert single.loss(problem.target.ravel()) == pytest.approx(at_best, rel=50 * EPS)
    assert (
        np.abs(single.gradient(problem.target.ravel())).max() <= 50 * EPS * np.abs(problem.cross_moment).max()
    )


@pytest.mark.parametrize("loss", ["square", "softmax"])
@pytest.mark.parametrize(
    ("widths", "samples"),
    [((9, 8, 7, 8, 6), 20), ((9, 8, 7, 8, 6), 7), ((12, 5, 3), 9), ((6, 2, 9), 4), ((3, 2), 8)],
)
def test_the_ways_to_a_gradient_agree(widths, samples, loss):
    """By loops in place, on the columns of the inputs, on the rows of the outputs; scratch is not read unwritten."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((samples, widths[0])), rng.standard_normal((samples, widths[-1]))
    if loss == "softmax":
        y = np.eye(widths[-1])[rng.integers(0, widths[-1], samples)]
    model = gflow.DeepLinear(widths)
    o = Objective(model, gflow.Problem(x, y, loss=loss, weight_decay=0.1))
    theta = rng.standard_normal(model.size)
    ways = [kernels._gradient_of_few, kernels._gradient_of_many]
    if len(widths) > 2 and widths[-1] < kernels._columns(o.dims):
        ways.append(kernels._gradient_by_outputs)
    found = []
    for way in ways:
        found.append(np.full(model.size, np.nan))
        way(theta, o.data, o.dims, np.full(o.work.size, np.nan), found[-1])
    for other in (*found[1:], o.gradient(theta)):
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-13 * np.abs(found[0]).max())


def test_the_gradient_of_a_chain_of_numbers():
    """All widths one: dL/dw_j = (c prod w - b) prod_{i != j} w_i + decay w_j, with zeros among the factors."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 1)), rng.standard_normal((5, 1))
    model = gflow.DeepLinear((1,) * 5)
    for problem, c, b in (
        (gflow.Problem(x, y, weight_decay=0.2), (x**2).sum() / 5, (x * y).sum() / 5),
        (gflow.Problem.factorization([[1.5]], weight_decay=0.2), 1.0, 1.5),
    ):
        for theta in (rng.standard_normal(4), np.array([0.5, 0.0, 2.0, -1.0])):
            others = np.array([np.prod(np.delete(theta, j)) for j in range(4)])
            expected = (c * np.prod(theta) - b) * others + 0.2 * theta
            np.testing.assert_allclose(Objective(model, problem).gradient(theta), expected, rtol=1e-13)
