"""Loss, gradient and Hessian-vector product of two-layer ReLU networks against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

import gflow
from gflow.kernels import products
from gflow.kernels import relu as kernels
from gflow.models.relu import hyperplanes
from gflow.objective import Objective

EPS = np.finfo(float).eps
LOSSES = [("square", 1), ("square", 3), ("logistic", 1), ("exponential", 1), ("softmax", 3)]


def naive_loss(model, problem, theta):
    """The loss from its definition, sample by sample."""
    *chain, a = model.unpack(theta)
    w = chain[0]
    for matrix in chain[1:]:
        w = matrix @ w
    total = 0.0
    for x, y in zip(problem.X, problem.Y, strict=True):
        z = w @ x
        f = a @ np.where(z > 0, z, model.slope * z)
        if problem.loss == "square":
            total += np.sum((f - y) ** 2)
        elif problem.loss == "logistic":
            total += np.logaddexp(0.0, -y[0] * f[0])
        elif problem.loss == "exponential":
            total += np.exp(-y[0] * f[0])
        else:
            total -= y @ log_softmax(f)
    trained = theta if model.train_outer else theta[: -a.size]
    return problem.factor * total + 0.5 * problem.weight_decay * trained @ trained


def naive_gradient(model, problem, theta):
    """The chain rule, neuron by neuron, for a first layer of one matrix."""
    w, a = model.unpack(theta)
    dw, da = np.zeros_like(w), np.zeros_like(a)
    for x, y in zip(problem.X, problem.Y, strict=True):
        z = w @ x
        slope = np.where(z > 0, 1.0, model.slope)
        f = a @ (slope * z)
        if problem.loss == "square":
            r = 2 * (f - y)
        elif problem.loss == "logistic":
            r = -y / (1 + np.exp(y * f))
        elif problem.loss == "exponential":
            r = -y * np.exp(-y * f)
        else:
            r = np.exp(log_softmax(f)) - y
        r = problem.factor * r
        dw += np.outer(slope * (a.T @ r), x)
        da += np.outer(r, slope * z)
    dw += problem.weight_decay * w
    da += problem.weight_decay * a
    return np.concatenate([dw.ravel(), da.ravel() * model.train_outer])


def random_case(loss, outputs, sizes=(5, 3, 4), seed=0, weight_decay=0.0, **options):
    n, d, m = sizes
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, outputs))
    if loss in ("logistic", "exponential"):
        y = np.sign(y)
    elif loss == "softmax":
        y = np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)
    model = gflow.TwoLayerReLU(d, m, outputs, **options)
    problem = gflow.Problem(x, y / y.sum(1, keepdims=True) if loss == "softmax" else y, loss,
                            weight_decay=weight_decay)  # fmt: skip
    return model, problem, 0.5 * rng.standard_normal(model.size)


def margin(model, problem, theta):
    """Largest step along a unit vector that crosses no kink."""
    z = model.first_layer(theta) @ problem.X.T
    return np.min(np.abs(z)) / np.max(np.linalg.norm(problem.X, axis=1))


def differences(function, theta, h):
    """Central differences of fourth order, one row for each parameter."""
    rows = []
    for i in range(theta.size):
        step = np.zeros(theta.size)
        step[i] = h
        rows.append(
            (8 * (function(theta + step) - function(theta - step))
             - (function(theta + 2 * step) - function(theta - 2 * step))) / (12 * h)
        )  # fmt: skip
    return np.array(rows)


def step_inside(model, problem, theta):
    h = min(1e-3, margin(model, problem, theta) / 4)
    assert h > 1e-5, "the case lies too near a kink for differences"
    return h


@pytest.mark.parametrize(("loss", "outputs"), LOSSES)
@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("train_outer", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("sizes", [(5, 3, 4), (1, 1, 1), (9, 8, 11)])
def test_loss_gradient_and_hvp(loss, outputs, slope, train_outer, weight_decay, sizes):
    """Equal the definitions to rounding, and each other's central differences to the differences' accuracy."""
    assert 9 * 8 * 11 > products.SMALL > 5 * 3 * 4
    model, problem, theta = random_case(
        loss, outputs, sizes, weight_decay=weight_decay, slope=slope, train_outer=train_outer
    )
    objective = Objective(model, problem)
    value, g = naive_loss(model, problem, theta), naive_gradient(model, problem, theta)
    assert objective.loss(theta) == pytest.approx(value, rel=100 * EPS)
    np.testing.assert_allclose(objective.gradient(theta), g, rtol=0, atol=100 * EPS * (1 + np.abs(g).max()))
    if sizes[0] > 5:
        return  # differences of 99 parameters say no more than those of 16
    h = step_inside(model, problem, theta)
    truncation, size = 10 * h**4, model.size
    moving = size if train_outer else size - outputs * sizes[2]
    by_loss = differences(objective.loss, theta, h)[:moving]
    np.testing.assert_allclose(g[:moving], by_loss, rtol=0, atol=truncation + 20 * EPS * (1 + value) / h)
    rng = np.random.default_rng(1)
    v = rng.standard_normal(size)
    if not train_outer:
        v[moving:] = 0.0
    unit = v / np.linalg.norm(v)
    steps = [objective.gradient(theta + c * h * unit) for c in (-2, -1, 1, 2)]
    expected = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)
    found = objective.hvp(theta, unit)
    scale = 1 + np.abs(g).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * h**4 + 20 * EPS * scale / h)


@pytest.mark.parametrize(("loss", "outputs"), LOSSES)
def test_hvp_beyond_small_products_is_symmetric_and_the_derivative_of_the_gradient(loss, outputs):
    model, problem, theta = random_case(loss, outputs, (9, 8, 11), slope=0.1, weight_decay=0.1, seed=6)
    objective = Objective(model, problem)
    rng = np.random.default_rng(2)
    u, v = rng.standard_normal((2, model.size))
    hu, hv = objective.hvp(theta, u), objective.hvp(theta, v)
    assert u @ hv == pytest.approx(v @ hu, rel=1e-12, abs=1e-12)
    u /= np.linalg.norm(u)
    h = step_inside(model, problem, theta)
    steps = [objective.gradient(theta + c * h * u) for c in (-2, -1, 1, 2)]
    expected = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)
    scale = 1 + np.abs(objective.gradient(theta)).max()
    np.testing.assert_allclose(
        objective.hvp(theta, u), expected, rtol=0, atol=100 * h**4 + 20 * EPS * scale / h
    )


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("sizes", [(5, 3, 4), (9, 8, 11)])
@pytest.mark.parametrize(("loss", "outputs"), [("square", 1), ("softmax", 3)])
def test_a_chain_of_first_layers(depth, sizes, loss, outputs):
    model, problem, theta = random_case(
        loss, outputs, sizes, slope=0.2, weight_decay=0.1, first_depth=depth, seed=3
    )
    objective = Objective(model, problem)
    value = naive_loss(model, problem, theta)
    assert objective.loss(theta) == pytest.approx(value, rel=1000 * EPS)
    h = 1e-5  # a quotient that crossed a kink would be off by h at most, far above what is asked
    plain = np.array(
        [(objective.loss(theta + e) - objective.loss(theta - e)) / (2 * h) for e in h * np.eye(model.size)]
    )
    # central differences: h^2 of truncation, rounding eps L / h
    np.testing.assert_allclose(objective.gradient(theta), plain, rtol=0, atol=1e-8 * (1 + value))
    assert model.hvp is None
    with pytest.raises(ValueError, match="hvp"):
        objective.hvp(theta, theta)


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_gradient_of_a_chain_is_that_of_its_product_by_the_chain_rule(depth, outputs):
    model, problem, theta = random_case("square", outputs, (9, 8, 11), slope=0.1, first_depth=depth, seed=5)
    *chain, a = model.unpack(theta)
    one = gflow.TwoLayerReLU(8, 11, outputs, slope=0.1)
    product = model.first_layer(theta)
    outer, inner = one.unpack(Objective(one, problem).gradient(one.pack([product, a])))[::-1]
    found = model.unpack(Objective(model, problem).gradient(theta))
    np.testing.assert_allclose(found[-1], outer, rtol=0, atol=1e-13 * np.abs(outer).max())
    for layer in range(depth):
        above, below = np.eye(11), np.eye(8)
        for matrix in chain[layer + 1 :]:
            above = matrix @ above
        for matrix in chain[:layer]:
            below = matrix @ below
        expected = above.T @ inner @ below.T
        np.testing.assert_allclose(found[layer], expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("sizes", [(5, 3, 4), (9, 8, 11)])
def test_identities_in_a_chain_change_no_bit(sizes):
    one, problem, theta = random_case("square", 2, sizes, slope=0.1)
    w, a = one.unpack(theta)
    chain = gflow.TwoLayerReLU(*sizes[1:], 2, slope=0.1, first_depth=3)
    longer = chain.pack([w, np.eye(len(w)), np.eye(len(w)), a])
    plain, product = Objective(one, problem), Objective(chain, problem)
    assert product.loss(longer) == plain.loss(theta)
    found, expected = chain.unpack(product.gradient(longer)), one.unpack(plain.gradient(theta))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[-1], expected[-1])


def test_the_inactive_slope_counts_at_zero():
    """Outside of a pattern a pair at zero takes the inactive side: a documented choice."""
    model = gflow.TwoLayerReLU(2, 1, slope=0.25)
    objective = Objective(model, gflow.Problem([[1.0, 0.0]], [1.0], factor=0.5))
    np.testing.assert_array_equal(objective.gradient([0.0, 1.0, 2.0]), [-0.5, 0.0, 0.0])


def test_losses_of_far_outputs_stay_finite_and_exact():
    """f = 2000 y or -2000 y: log(1 + e^-2000) = 0, log(1 + e^2000) = 2000; likewise softmax."""
    for sign, expected in ((1.0, 0.0), (-1.0, 2000.0)):
        model = gflow.TwoLayerReLU(1, 1)
        objective = Objective(model, gflow.Problem([[1.0]], [sign], "logistic"))
        assert objective.loss([2000.0, 1.0]) == expected
        assert np.all(np.isfinite(objective.gradient([2000.0, 1.0])))
        model = gflow.TwoLayerReLU(1, 1, 2)
        objective = Objective(model, gflow.Problem([[1.0]], [[sign > 0, sign < 0]], "softmax"))
        assert objective.loss([2000.0, 1.0, 0.0]) == expected
        assert np.all(np.isfinite(objective.gradient([2000.0, 1.0, 0.0])))
        assert np.all(np.isfinite(objective.hvp([2000.0, 1.0, 0.0], np.ones(3))))


@pytest.mark.parametrize("outputs", [1, 3])
def test_jacobian_gives_the_gradient(outputs):
    model, problem, theta = random_case("square", outputs, (6, 3, 4), slope=0.1)
    residual = model.function(theta, problem.X) - problem.Y
    g = 2 * problem.factor * np.einsum("nk,nkp->p", residual, model.jacobian(theta, problem.X))
    np.testing.assert_allclose(g, Objective(model, problem).gradient(theta), rtol=0, atol=1e-14)


def test_forces_are_the_pulls_of_the_samples():
    model, problem, theta = random_case("square", 3, (9, 8, 11), slope=0.1)
    objective = Objective(model, problem)
    objective.gradient(theta)
    residual = model.function(theta, problem.X) - problem.Y
    expected = -2 * problem.factor * (residual @ model.outer_layer(theta)).T
    out = np.empty(9)
    for j in range(11):
        kernels.forces(j, theta, objective.dims, objective.work, out)
        np.testing.assert_allclose(out, expected[j], rtol=0, atol=1e-14 * np.abs(expected).max())


@pytest.mark.parametrize("sizes", [(9, 2, 7), (203, 5, 400), (400, 70, 70)])
def test_work_is_long_enough(sizes):
    """Scratch filled with NaN, a guard beyond its end: no kernel reads what it has not written, or beyond."""
    for depth in (1, 2, 3) if sizes[0] == 9 else (1, 2):
        for loss, outputs in LOSSES:
            model, problem, theta = random_case(loss, outputs, sizes, first_depth=depth)
            objective = Objective(model, problem)
            assert in_tiles(objective) == (sizes[0] > 9)
            size = objective.work.size
            work = np.full(size + 1000, np.nan)
            work[0] = 0.0
            work[kernels.sliding_at(objective.dims) :][: sizes[2]] = 0.0
            out = np.empty(model.size)
            args = (theta, objective.data, objective.dims, work)
            assert kernels.loss(0.0, *args) == objective.loss(theta)
            kernels.gradient(0.0, *args, out)
            np.testing.assert_array_equal(out, objective.gradient(theta))
            if depth == 1:
                kernels.hvp(0.0, theta, theta, *args[1:], out)
                np.testing.assert_array_equal(out, objective.hvp(theta, theta))
            assert np.all(np.isnan(work[size:]))


def in_tiles(objective):
    return kernels._tile(objective.dims) < objective.dims[3]


# Three tiles, of which the last is shorter.
MANY = (1000, 16, 64)


def many(loss, outputs, **options):
    """A case of many samples, with neurons at rest on all kinks."""
    model, problem, theta = random_case(loss, outputs, MANY, seed=8, **options)
    w = model.unpack(theta)[-2]
    w[::20] = 0.0  # a view
    objective = Objective(model, problem)
    assert in_tiles(objective) and MANY[0] % kernels._tile(objective.dims)
    assert not model.first_layer(theta)[::20].any()
    return model, problem, theta


def test_which_samples_go_in_tiles():
    """Many, but for a loss that couples them, and for inputs that outnumber the neurons."""
    model, problem, _ = many("logistic", 1)
    assert not in_tiles(Objective(model, problem.log))
    assert not in_tiles(Objective(model, gflow.Problem(problem.X[:300], problem.Y[:300])))
    assert not in_tiles(
        Objective(gflow.TwoLayerReLU(16, 15), gflow.Problem(np.ones((2000, 16)), np.ones(2000)))
    )


@pytest.mark.parametrize(("loss", "outputs"), LOSSES)
@pytest.mark.parametrize("options", [{}, {"slope": 0.3, "weight_decay": 0.2, "train_outer": False}])
def test_tiles_equal_the_definitions(loss, outputs, options):
    """To the rounding of a sum over so many samples."""
    model, problem, theta = many(loss, outputs, **options)
    objective = Objective(model, problem)
    bound = MANY[0] * EPS
    assert objective.loss(theta) == pytest.approx(naive_loss(model, problem, theta), rel=bound)
    g = naive_gradient(model, problem, theta)
    np.testing.assert_allclose(objective.gradient(theta), g, rtol=0, atol=bound * np.abs(g).max())


@pytest.mark.parametrize(("loss", "outputs"), LOSSES)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kink", [0.0, 0.5])
def test_the_gradient_in_tiles_is_the_sum_over_parts(loss, outputs, depth, kink):
    """Parts that fit into a tile each, of other sizes; the kink's slope is the one that a descent may ask for."""
    model, problem, theta = many(loss, outputs, first_depth=depth, weight_decay=0.2)

    def parts(chosen, decay):
        objective = Objective(model, gflow.Problem(problem.X[chosen], problem.Y[chosen], loss,
                                                   factor=problem.factor, weight_decay=decay))  # fmt: skip
        objective.data[kernels.KINK] = kink
        assert in_tiles(objective) == (chosen == slice(None))
        return objective.loss(theta), objective.gradient(theta)

    value, found = parts(slice(None), 0.2)
    each = [parts(slice(a, b), 0.2 * (a == 0)) for a, b in ((0, 1), (1, 300), (300, 640), (640, 1000))]
    bound = MANY[0] * EPS
    assert value == pytest.approx(sum(part for part, _ in each), rel=bound)
    largest = max(np.abs(part).max() for _, part in each)
    np.testing.assert_allclose(found, sum(part for _, part in each), rtol=0, atol=bound * largest)


@pytest.mark.parametrize(("loss", "outputs"), [("logistic", 1), ("softmax", 3)])
def test_tiles_agree_with_the_logarithm_of_the_loss_that_has_none(loss, outputs):
    """grad log L = grad L / L."""
    rng = np.random.default_rng(1)
    model, problem, theta = many(loss, outputs)
    y = problem.Y if outputs == 1 else np.eye(outputs)[rng.integers(0, outputs, MANY[0])]
    problem = gflow.Problem(problem.X, y, loss)
    plain, log = Objective(model, problem), Objective(model, problem.log)
    expected = plain.gradient(theta) / plain.loss(theta)
    bound = MANY[0] * EPS
    assert log.loss(theta) == pytest.approx(np.log(plain.loss(theta)), abs=bound)
    np.testing.assert_allclose(log.gradient(theta), expected, rtol=0, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("outputs", [1, 3])
def test_tiles_within_a_pattern(outputs):
    """With slopes that are given, and a neuron that slides along one plane: the chain rule in matrices."""
    model, problem, theta = many("square", outputs)
    n, d, m = MANY
    objective, rng = Objective(model, problem), np.random.default_rng(4)
    work, dims = objective.work, objective.dims
    slopes, normal = rng.random((m, n)), np.eye(d)[2]
    work[0] = 1.0
    kept = work[kernels.slopes_at(dims) :][: m * n]
    kept[:] = slopes.ravel()
    work[kernels.sliding_at(dims) + 5] = 1
    work[kernels.basis_at(dims) + 5 * d * d :][:d] = normal
    w, a = model.unpack(theta)
    z = slopes * (w @ problem.X.T)
    residual = a @ z - problem.Y.T
    derivative = 2 * problem.factor * residual
    dw, da = (slopes * (a.T @ derivative)) @ problem.X, derivative @ z.T
    along = dw[5] @ normal
    dw[5] -= along * normal
    expected, bound = model.pack([dw, da]), n * EPS
    value, found = objective.loss(theta), objective.gradient(theta)
    assert value == pytest.approx(problem.factor * np.sum(residual**2), rel=bound)
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())
    np.testing.assert_array_equal(kept, slopes.ravel())
    assert work[kernels.along_at(dims) + 5 * d] == pytest.approx(along, abs=bound * np.abs(expected).max())
    pulls = np.empty(n)
    for j in range(m):
        kernels.forces(j, theta, dims, work, pulls)
        np.testing.assert_allclose(
            pulls, -a[:, j] @ derivative, rtol=0, atol=bound * np.abs(derivative).max()
        )
    # inside of a pattern the square loss is of the fourth degree along a line: such differences are exact
    u, h = rng.standard_normal(theta.size) / np.sqrt(theta.size), 0.1
    u[5 * d : 6 * d] = 0.0
    by_loss = differences(lambda x: objective.loss(theta + x[0] * u), np.zeros(1), h)[0]
    assert by_loss == pytest.approx(found @ u, rel=0, abs=bound * value / h)


def test_hyperplanes_group_parallel_inputs():
    u, v = np.array([3.0, 4.0]) / 5, np.array([1.0, -1.0]) / np.sqrt(2)
    x = np.array([2 * u, 3 * v, 0 * u, -5 * u, 0.1 * u, -v])
    plane, coefficients, normals = hyperplanes(x)
    assert len(normals) == 2
    assert plane[0] == plane[3] == plane[4] != plane[1] == plane[5]
    np.testing.assert_allclose(coefficients, [2, 3, 0, -5, 0.1, -1], rtol=4 * EPS)
    np.testing.assert_allclose(coefficients[:, None] * normals[plane], x, rtol=0, atol=10 * EPS)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=2 * EPS)


def test_nearly_parallel_inputs_stay_apart():
    plane, _, normals = hyperplanes(np.array([[1.0, 0.0], [1.0, 1e-9], [-1.0, 0.0], [1e-300, 0.0]]))
    assert len(normals) == 2
    assert list(plane) == [0, 1, 0, 0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_hyperplanes_of_extreme_inputs(size):
    """Sizes whose squares under- or overflow still have a direction."""
    x = size * np.array([[1.0, 2.0], [-2.0, -4.0], [2.0, -1.0]])
    plane, coefficients, normals = hyperplanes(x)
    assert list(plane) == [0, 0, 1]
    np.testing.assert_allclose(coefficients[:, None] * normals[plane], x, rtol=1e-14, atol=1e-14 * size)


def test_inputs_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="X must have an input that is not zero"):
        hyperplanes(np.zeros((3, 2)))
    model = gflow.TwoLayerReLU(2, 1)
    with pytest.raises(ValueError, match="X must have an input"):
        gflow.flow(model, gflow.Problem(np.zeros((3, 2)), np.ones(3)), [1.0, 1, 1], 1.0)
