"""Observables against their definitions, and sharpness, NTK and Hessian against differences and theory."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import gflow
from gflow import neurons, observe
from gflow.objective import Objective

EPS = np.finfo(float).eps


NEURONS = {name for name, f in observe.OBSERVABLES.items() if f.__module__ == "gflow.neurons"}
LINEAR = {"end_to_end", "singular_values", "mode_strengths", "nuclear_rank", "entropy_rank"}
LINEAR |= {"roy_vetterli_rank", "stable_rank", "imbalance", "imbalance_norms"}


CLASSES = {"direction", "linear_margin", "log_loss"}


def labelled():
    x = np.random.default_rng(1).standard_normal((6, 3))
    model = gflow.DeepLinear((3, 2, 1))
    return model, gflow.Problem(x, np.sign(x[:, 0]), "logistic"), model.init("balanced", 0.5)


def relu():
    rng = np.random.default_rng(0)
    problem = gflow.Problem(rng.standard_normal((6, 3)), rng.standard_normal((6, 1)))
    model = gflow.TwoLayerReLU(3, 5)
    return model, problem, model.init("balanced", 0.5)


@pytest.mark.parametrize("family", ["linear", "labelled", "relu"])
def test_every_named_observable_runs_on_a_flow(family):
    case = CASES[3]
    run_of, left_out = {
        "linear": ((case.model, case.problem, case.theta0), NEURONS | {"log_loss"}),
        "labelled": (labelled(), NEURONS | {"mode_strengths"}),
        "relu": (relu(), LINEAR | CLASSES),
    }[family]
    names = set(observe.OBSERVABLES) - left_out
    run = gflow.flow(*run_of, [0.0, 1.0, 2.0], observe=sorted(names))
    assert set(run.observed) == names
    for name in names:
        function = observe.OBSERVABLES[name]
        assert function.__name__ == name and function.__doc__
        assert len(run[name]) == 3 and np.isfinite(run[name]).all()
        np.testing.assert_array_equal(
            observe.along(run, function), [function(*run_of[:2], theta) for theta in run.theta]
        )


def test_observables_of_neurons_against_their_definitions():
    model, problem, theta = relu()
    w, a = model.unpack(theta)
    np.testing.assert_array_equal(observe.neuron_norms(model, problem, theta), np.linalg.norm(w, axis=1))
    np.testing.assert_allclose(
        observe.neuron_directions(model, problem, theta) * np.linalg.norm(w, axis=1)[:, None], w, rtol=1e-14
    )
    pattern = observe.activation_pattern(model, problem, theta)
    np.testing.assert_array_equal(pattern, np.sign(w @ problem.X.T))
    by_hand = np.maximum(problem.X @ w.T, 0) @ a.T
    np.testing.assert_allclose(observe.outputs(model, problem, theta), by_hand, rtol=1e-13, atol=1e-15)
    least = np.min(np.sign(problem.Y) * by_hand) / np.sum(theta**2)
    assert observe.margin(model, problem, theta) == pytest.approx(least, rel=1e-12)
    np.testing.assert_array_equal(observe.multipliers(model, problem, theta), (pattern > 0).astype(float))
    directions = np.array([[1.0, 0, 0], [0, 1.0, 1.0]])
    cosines = neurons.cosines_to(directions)(model, problem, theta)
    assert cosines[2, 1] == pytest.approx(w[2] @ directions[1] / np.linalg.norm(w[2]) / np.sqrt(2), rel=1e-12)
    np.testing.assert_array_equal(
        neurons.outputs_at(problem.X)(model, None, theta), observe.outputs(model, problem, theta)
    )
    test = gflow.Problem(problem.X[:3], problem.Y[:3])
    assert neurons.on(test, observe.loss)(model, problem, theta) == observe.loss(model, test, theta)
    with pytest.raises(ValueError, match="model must be a two-layer network"):
        observe.neuron_norms(CASES[0].model, CASES[0].problem, CASES[0].theta0)


def test_multipliers_give_the_velocity_of_a_sliding_flow():
    """Over a short time the neurons move by what their slopes say, also those that slide."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((10, 3))
    problem = gflow.Problem(x, x[:, :1] + 0.5 * rng.standard_normal((10, 1)))
    model = gflow.TwoLayerReLU(3, 12)
    run = gflow.flow(model, problem, model.init("balanced", 0.1, rng=1), [30.0, 30.0 + 1e-4], rtol=1e-12)
    slopes = observe.multipliers(model, problem, run.theta[0])
    sliding = (slopes > 0) & (slopes < 1)
    assert sliding.any()
    force = -neurons.output_derivative(model, problem, run.theta[0]) @ model.outer_layer(run.theta[0])
    velocity = (slopes * force.T) @ x
    moved = (model.first_layer(run.theta[1]) - model.first_layer(run.theta[0])) / 1e-4
    np.testing.assert_allclose(moved, velocity, atol=1e-3 * np.abs(velocity).max())


def test_end_to_end_is_the_product_and_acts_as_the_network(case):
    parts = case.model.unpack(case.theta0)
    if isinstance(case.model, gflow.Symmetric):
        w = parts[0] @ parts[0].T
    elif isinstance(case.model, gflow.Diagonal):
        powers = [part**case.model.depth for part in parts]
        w = {"product": parts[0] * parts[-1], "power": powers[0], "difference": powers[0] - powers[-1]}
        w = w[case.model.form][None]
    else:
        w = np.linalg.multi_dot([*parts[::-1], np.eye(case.problem.inputs)])
    room = 100 * EPS * abs(w).max()
    np.testing.assert_allclose(
        observe.end_to_end(case.model, case.problem, case.theta0), w, rtol=0, atol=room
    )
    np.testing.assert_allclose(
        observe.singular_values(case.model, case.problem, case.theta0) ** 2,
        np.sort(np.linalg.eigvalsh(w @ w.T))[::-1][: min(w.shape)], rtol=0, atol=room * abs(w).max() * len(w),
    )  # fmt: skip


def test_mode_strengths_of_the_target_are_its_singular_values():
    rng = np.random.default_rng(0)
    target = rng.standard_normal((3, 4))
    problem = gflow.Problem.factorization(target)
    single = gflow.DeepLinear((4, 3))
    values = np.linalg.svd(target, compute_uv=False)
    np.testing.assert_allclose(observe.mode_strengths(single, problem, target.ravel()), values, atol=1e-14)
    model = gflow.DeepLinear((4, 5, 3))
    theta = model.init("aligned", scale=[0.5, 0.3, 0.2], problem=problem)
    np.testing.assert_allclose(observe.mode_strengths(model, problem, theta), [0.25, 0.09, 0.04], atol=1e-15)


def test_regression_and_factorization_name_the_same_target():
    rng = np.random.default_rng(1)
    x, m = rng.standard_normal((12, 4)), rng.standard_normal((3, 4))
    problem = gflow.Problem(x, x @ m.T)
    np.testing.assert_allclose(problem.target, m, atol=1e-13)
    u, s, v = problem.target_svd
    np.testing.assert_allclose(u * s @ v.T, m, atol=1e-13)
    assert all(column[abs(column).argmax()] > 0 for column in u.T)
    few = gflow.Problem(x[:2], x[:2] @ m.T)  # fewer samples than inputs: the map of least norm
    np.testing.assert_allclose(few.target, (np.linalg.pinv(x[:2]) @ (x[:2] @ m.T)).T, atol=1e-13)


@given(arrays(float, (3, 4), elements=st.floats(-1, 1).map(lambda x: round(x, 3))))
def test_effective_ranks_follow_their_definitions(w):
    ranks = observe.effective_ranks(w)
    s = np.linalg.svd(w, compute_uv=False)
    if s[0] == 0:
        assert all(np.isnan(value) for value in ranks.values())
        return
    p = s[s > 0] / s.sum()
    wanted = {
        "nuclear": np.linalg.norm(w, "nuc") / np.linalg.norm(w, 2),
        "entropy": -np.sum(p * np.log(p)),
        "roy_vetterli": np.prod(p**-p),
        "stable": np.linalg.norm(w) ** 2 / np.linalg.norm(w, 2) ** 2,
    }
    assert ranks == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    for name in ("nuclear", "roy_vetterli", "stable"):
        assert 1 - 1e-12 <= ranks[name] <= 3 + 1e-12


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_effective_ranks_of_a_projection_are_its_rank(rank):
    model, problem = gflow.DeepLinear((3, 3)), gflow.Problem.factorization(np.eye(3))
    theta = np.diag([5.0] * rank + [0.0] * (3 - rank)).ravel()
    assert observe.nuclear_rank(model, problem, theta) == pytest.approx(rank)
    assert observe.entropy_rank(model, problem, theta) == pytest.approx(np.log(rank))
    assert observe.roy_vetterli_rank(model, problem, theta) == pytest.approx(rank)
    assert observe.stable_rank(model, problem, theta) == pytest.approx(rank)


def test_effective_ranks_do_not_depend_on_scale_even_when_tiny():
    w = np.random.default_rng(0).standard_normal((4, 3))
    assert observe.effective_ranks(1e-200 * w) == pytest.approx(observe.effective_ranks(w), rel=1e-12)


def test_imbalance_of_balanced_and_of_other_starts():
    model, problem = gflow.DeepLinear((4, 3, 5, 2)), gflow.Problem.factorization(np.ones((2, 4)))
    theta = model.init("gaussian", scale=0.7, rng=1)
    w1, w2, w3 = model.unpack(theta)
    wanted = [np.linalg.norm(w2.T @ w2 - w1 @ w1.T), np.linalg.norm(w3.T @ w3 - w2 @ w2.T)]
    np.testing.assert_allclose(observe.imbalance_norms(model, problem, theta), wanted, rtol=1e-14)
    entries = np.concatenate([(w2.T @ w2 - w1 @ w1.T).ravel(), (w3.T @ w3 - w2 @ w2.T).ravel()])
    np.testing.assert_allclose(observe.imbalance(model, problem, theta), entries, rtol=0, atol=20 * EPS)
    for kind in ("balanced", "aligned"):
        theta = model.init(kind, scale=0.7, rng=1, problem=problem)
        assert observe.imbalance_norms(model, problem, theta).max() < 20 * EPS


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_sharpness_at_the_balanced_optimum(depth):
    """L = |W - M|^2 / 2: the largest eigenvalue at the balanced factorisation of M is N s^(2 - 2/N)."""
    rng = np.random.default_rng(depth)
    left, right = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    s = np.array([2.5, 1.0, 0.4])
    problem = gflow.Problem.factorization(left * s @ right.T)
    model = gflow.DeepLinear((3,) * (depth + 1))
    theta = model.init("aligned", scale=s ** (1 / depth), problem=problem)
    assert Objective(model, problem).loss(theta) < 1e-28
    wanted = depth * s[0] ** (2 - 2 / depth)
    assert observe.sharpness(model, problem, theta) == pytest.approx(wanted, rel=1e-12)
    assert observe.smallest_eigenvalue(model, problem, theta) >= -1e-12


def test_hessian_eigenvalues_of_the_saddle():
    """At zero with two layers the Hessian couples W_1 and W_2 by -M: eigenvalues are plus and minus s."""
    m = np.random.default_rng(0).standard_normal((2, 3))
    model, problem = gflow.DeepLinear((3, 2, 2)), gflow.Problem.factorization(m)
    s = np.linalg.svd(m, compute_uv=False)
    values = observe.hessian_eigenvalues(model, problem, np.zeros(10))
    wanted = np.sort(np.concatenate([np.repeat(s, 2), np.zeros(2), np.repeat(-s, 2)]))[::-1]
    np.testing.assert_allclose(values, wanted, atol=1e-14)
    np.testing.assert_array_equal(observe.hessian_eigenvalues(model, problem, np.zeros(10), k=3), values[:3])
    assert observe.smallest_eigenvalue(model, problem, np.zeros(10)) == values[-1]


def test_lanczos_equals_the_dense_spectrum():
    """Just above 500 parameters the solver changes; the numbers do not."""
    rng = np.random.default_rng(0)
    model, problem = (
        gflow.DeepLinear((18, 15, 17)),
        gflow.Problem.factorization(rng.standard_normal((17, 18))),
    )
    assert 500 < model.size < 600
    theta = model.init("gaussian", scale=0.3, rng=1)
    objective = Objective(model, problem)
    dense = np.linalg.eigvalsh(objective.hessian(theta))[::-1]
    room = 1e-10 * abs(dense).max()
    np.testing.assert_allclose(objective.eigenvalues(theta, 4), dense[:4], rtol=0, atol=room)
    np.testing.assert_allclose(objective.eigenvalues(theta, 3, "smallest"), dense[-3:], rtol=0, atol=room)
    assert observe.sharpness(model, problem, theta) == observe.sharpness(model, problem, theta)
    assert observe.sharpness(model, problem, theta) == pytest.approx(dense[0], rel=1e-10)
    np.testing.assert_allclose(objective.eigenvalues(theta), dense, rtol=0, atol=room)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ntk_equals_finite_differences_of_the_outputs(case):
    rng = np.random.default_rng(0)
    x, theta = (
        rng.standard_normal((3, case.problem.inputs)),
        case.theta0 + 0.3 * rng.standard_normal(case.model.size),
    )
    h = EPS ** (1 / 3)

    def outputs(theta):
        return (x @ case.model.end_to_end(theta).T).ravel()

    unit = np.eye(case.model.size)
    j = np.array([(outputs(theta + h * e) - outputs(theta - h * e)) / (2 * h) for e in unit]).T
    kernel = observe.ntk(case.model, case.problem, theta, x)
    assert kernel.shape == (3 * case.problem.outputs,) * 2
    np.testing.assert_allclose(kernel, j @ j.T, rtol=0, atol=1e3 * EPS ** (2 / 3) * (1 + abs(j @ j.T).max()))


def test_ntk_takes_the_inputs_of_the_problem_or_the_unit_vectors():
    rng = np.random.default_rng(0)
    model = gflow.DeepLinear((3, 4, 2))
    theta = model.init("gaussian", scale=1.0)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    np.testing.assert_array_equal(
        observe.ntk(model, gflow.Problem(x, y), theta), observe.ntk(model, gflow.Problem(x, y), theta, x)
    )
    problem = gflow.Problem.factorization(np.ones((2, 3)))
    np.testing.assert_array_equal(
        observe.ntk(model, problem, theta), observe.ntk(model, problem, theta, np.eye(3))
    )
    w1, w2 = model.unpack(theta)
    # Theta = (W_2 W_2^T) (x_i . x_j) + (x_i W_1^T W_1 x_j) 1
    wanted = np.einsum("ij,ab->iajb", np.eye(3), w2 @ w2.T) + np.einsum("ij,ab->iajb", w1.T @ w1, np.eye(2))
    np.testing.assert_allclose(observe.ntk(model, problem, theta), wanted.reshape(6, 6), atol=1e-13)


def test_the_ntk_drives_the_outputs():
    """For square loss df/dt = -2 factor NTK (f - y)."""
    case = CASES[5]
    x, y = case.problem.X, case.problem.Y
    h = 1e-4
    run = gflow.flow(case.model, case.problem, case.theta0, [0.0, h, 2 * h], rtol=1e-13)
    f = np.array([(x @ w.T).ravel() for w in case.model.end_to_end(run.theta)])
    slope = (f[2] - f[0]) / (2 * h)
    kernel = observe.ntk(case.model, case.problem, run.theta[1])
    wanted = -2 * case.problem.factor * kernel @ (f[1] - y.ravel())
    np.testing.assert_allclose(slope, wanted, rtol=0, atol=1e-6 * abs(wanted).max())


@pytest.mark.parametrize("kind", ["balanced", "aligned", "gaussian", "orthogonal", "identity"])
def test_starts_are_what_their_names_say(kind):
    rng = np.random.default_rng(0)
    problem = gflow.Problem.factorization(rng.standard_normal((4, 5)))
    model = gflow.DeepLinear((5, 6, 3, 4))
    theta = model.init(kind, scale=0.2, rng=3, problem=problem)
    np.testing.assert_array_equal(
        theta, model.init(kind, scale=0.2, rng=np.random.default_rng(3), problem=problem)
    )
    if kind != "identity":
        assert np.any(theta != model.init(kind, scale=0.2, rng=4, problem=problem))
    parts = model.unpack(theta)
    np.testing.assert_array_equal(model.pack(parts), theta)
    assert [part.shape for part in parts] == [(6, 5), (3, 6), (4, 3)]
    if kind in ("balanced", "aligned"):
        assert max(abs(m).max() for m in model.imbalance(theta)) < 20 * EPS
        assert np.linalg.norm(parts[0], 2) == pytest.approx(0.2)
    if kind == "aligned":
        np.testing.assert_allclose(observe.mode_strengths(model, problem, theta)[:3], 0.2**3, rtol=1e-12)
    if kind == "orthogonal":
        for part in parts:
            np.testing.assert_allclose(np.linalg.svd(part, compute_uv=False), 0.2, rtol=1e-12)
    if kind == "identity":
        for part in parts:
            np.testing.assert_array_equal(part, 0.2 * np.eye(*part.shape))
    if kind == "gaussian":
        wide = gflow.DeepLinear((60, 60)).init("gaussian", scale=0.2, rng=0)
        assert np.std(wide) == pytest.approx(0.2, rel=0.05)


def test_unpack_and_the_maps_take_many_states_at_once():
    for model in (gflow.DeepLinear((3, 4, 2)), gflow.Symmetric(3, 2)):
        thetas = np.random.default_rng(0).standard_normal((5, 7, model.size))
        maps = model.end_to_end(thetas)
        assert maps.shape[:2] == (5, 7)
        np.testing.assert_allclose(maps[2, 3], model.end_to_end(thetas[2, 3]), rtol=1e-13)
        if isinstance(model, gflow.DeepLinear):
            np.testing.assert_allclose(
                model.imbalance(thetas)[0][2, 3], model.imbalance(thetas[2, 3])[0], rtol=1e-12
            )
