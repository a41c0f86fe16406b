"""The compiled loop of descent against numpy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from cases import CASES

import gflow
from gflow.iterate import Options, batches
from gflow.kernels import abi, descent, relu
from gflow.objective import Objective

EPS = np.finfo(float).eps
OPTIONS = {
    "optimizer": "gd", "momentum": None, "betas": None, "eps": None, "batch_size": None,
    "replacement": False, "rng": None, "kink": None,
}  # fmt: skip


def by_hand(objective, theta, step_size, n_steps):
    out = [np.array(theta)]
    for _ in range(n_steps):
        out.append(out[-1] - step_size * objective.gradient(out[-1]))
    return np.array(out)


def test_descend_equals_numpy(case):
    objective = Objective(case.model, case.problem)
    run = gflow.descend(case.model, case.problem, case.theta0, 0.05, 40)
    assert run.status.code == "finished"
    # to rounding: the compiler may fuse a multiplication with the subtraction that follows
    wanted = by_hand(objective, case.theta0, 0.05, 40)
    np.testing.assert_allclose(run.theta, wanted, rtol=0, atol=40 * 10 * EPS * abs(wanted).max())
    np.testing.assert_array_equal(run.t, 0.05 * np.arange(41))


def test_one_step_of_a_parabola():
    """L = (w - 3)^2 / 2 from 1 at step size 1/2: the distance to 3 halves, without rounding."""
    problem = gflow.Problem.factorization([[3.0]])
    run = gflow.descend(gflow.DeepLinear((1, 1)), problem, [1.0], 0.5, 30)
    np.testing.assert_array_equal(run.theta[:, 0], 3.0 - 2.0 ** (1.0 - np.arange(31)))


def test_counts_and_losses():
    case = CASES[3]
    run = gflow.descend(case.model, case.problem, case.theta0, 0.02, 100)
    assert run.counts == {"steps": 100, "gradients": 100} and run.steps is None
    assert np.all(np.diff(run.loss) < 0)
    objective = Objective(case.model, case.problem)
    np.testing.assert_array_equal(run.loss, [objective.loss(theta) for theta in run.theta])


@pytest.mark.parametrize(
    ("every", "wanted"), [(1, range(11)), (4, [0, 4, 8, 10]), (5, [0, 5, 10]), (99, [0, 10])]
)
def test_save_every(every, wanted):
    case = CASES[5]
    every_step = gflow.descend(case.model, case.problem, case.theta0, 0.1, 10)
    some = gflow.descend(case.model, case.problem, case.theta0, 0.1, 10, save_every=every)
    np.testing.assert_array_equal(some.t, every_step.t[list(wanted)])
    np.testing.assert_array_equal(some.theta, every_step.theta[list(wanted)])


@pytest.mark.parametrize("through_a_file", [False, True])
def test_continuation_equals_the_uninterrupted_run(case, through_a_file, tmp_path):
    whole = gflow.descend(case.model, case.problem, case.theta0, 0.03, 50)
    half = gflow.descend(case.model, case.problem, case.theta0, 0.03, 23)
    if through_a_file:
        half = gflow.load(half.save(tmp_path / "half"))
    rest = gflow.descend(case.model, case.problem, None, 0.03, 50, start=half)
    np.testing.assert_array_equal(rest.theta, whole.theta[23:])
    np.testing.assert_array_equal(rest.t, whole.t[23:])


def test_divergence_returns_what_it_has_and_says_so():
    problem = gflow.Problem.factorization([[1.0]])
    run = gflow.descend(gflow.DeepLinear((1, 1, 1)), problem, [3.0, 2.0], 2.0, 1000, save_every=1000)
    assert run.status.code == "non_finite" and not run.status.ok
    assert "step size" in run.status.message and "2" in run.status.message
    assert np.isfinite(run.theta).all() and 0 < run.counts["steps"] < 1000
    assert run.t[-1] == 2.0 * run.counts["steps"]
    with np.errstate(over="ignore", invalid="ignore"):
        after = by_hand(Objective(gflow.DeepLinear((1, 1, 1)), problem), run.end, 2.0, 0)
        a, b = after[0]
        assert not np.isfinite([a - 2 * (a * b - 1) * b, b - 2 * (a * b - 1) * a]).all()


@pytest.mark.parametrize("excess", [0.98, 1.02])
def test_stable_exactly_below_two_over_sharpness(excess):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 3)), rng.standard_normal((9, 2))
    problem, model = gflow.Problem(x, y), gflow.DeepLinear((3, 2))
    limit = 2 / gflow.observe.sharpness(model, problem, np.zeros(6))
    run = gflow.descend(model, problem, np.ones(6), excess * limit, 1000)
    distance = np.linalg.norm(run.theta - problem.target.ravel(), axis=1)
    assert (distance[-1] < distance[0]) == (excess < 1)


@pytest.mark.parametrize("every", [1, 3])
def test_stop_and_observe(every):
    """``stop`` is asked at each saved state, and changes nothing before it ends the run."""
    case = CASES[0]
    asked = []

    def above_one(t, theta):
        asked.append(t)
        return theta[0] > 1

    run = gflow.descend(
        case.model, case.problem, [0.5, 0.5], 0.1, 1000, stop=above_one, observe="loss", save_every=every
    )
    assert run.status.code == "stopped" and run.status.ok
    assert run.end[0] > 1 >= run.theta[-2, 0]
    steps = every * np.arange(len(run.t))
    np.testing.assert_array_equal(run.t, 0.1 * steps)
    wanted = by_hand(Objective(case.model, case.problem), [0.5, 0.5], 0.1, steps[-1])[::every]
    np.testing.assert_allclose(run.theta, wanted, rtol=100 * EPS)
    np.testing.assert_array_equal(run["loss"], run.loss)
    assert asked == list(run.t)


def test_pausing_changes_nothing():
    case = CASES[5]
    o = Objective(case.model, case.problem)
    runs = []
    for budget in (100, 1):
        saved, state = np.empty((6, o.size)), descent.new_state(case.theta0, 0, descent.ADAM)
        options = Options.of(o, OPTIONS | {"optimizer": "adam", "batch_size": 2, "rng": 3})
        arguments, batches = options.arguments(o)
        rest = state, options.rule, batches, np.array([0.05]), saved, 0, 4, 20, budget
        while (code := descent.advance(o.gradient_kernel, *arguments, *rest)) == descent.PAUSED:
            pass
        assert code == descent.FINISHED
        runs.append(saved)
    np.testing.assert_array_equal(*runs)


def test_one_compiled_loop_serves_all_models():
    for case in CASES:
        gflow.descend(case.model, case.problem, case.theta0, 1e-3, 2)
    assert len(descent.advance.signatures) == 1
    assert isinstance(Objective(CASES[0].model, CASES[0].problem).gradient_kernel, abi.Kernel)


# ---- heavy ball, Adam, schedules ---------------------------------------------------------------------------


def heavy_ball(gradient, theta, sizes, beta):
    out, v = [np.array(theta)], 0.0
    for h in sizes:
        v = beta * v - h * gradient(out[-1])
        out.append(out[-1] + v)
    return np.array(out)


def adam(gradient, theta, sizes, betas, eps):
    out, m, v = [np.array(theta)], 0.0, 0.0
    for k, h in enumerate(sizes, start=1):
        g = gradient(out[-1])
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        out.append(out[-1] - h * (m / (1 - betas[0] ** k)) / (np.sqrt(v / (1 - betas[1] ** k)) + eps))
    return np.array(out)


def quadratic(condition=10.0):
    """L = (w - w*)^T H (w - w*) / 2 with eigenvalues from 1 to ``condition``, as a one-layer regression."""
    rng = np.random.default_rng(5)
    frame = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    x = np.sqrt(np.geomspace(1.0, condition, 4))[:, None] * frame.T
    problem = gflow.Problem(x, x @ np.array([1.0, -1.0, 2.0, 0.5]), factor=0.5)
    return gflow.DeepLinear((4, 1)), problem, frame


def close(run, wanted):
    """Equal but for rounding, which a stable iteration of a few hundred steps does not amplify."""
    np.testing.assert_allclose(run.theta, wanted, rtol=0, atol=len(wanted) * 20 * EPS * abs(wanted).max())


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_heavy_ball_equals_numpy(beta):
    model, problem, _ = quadratic()
    run = gflow.descend(model, problem, np.ones(4), 0.1, 200, optimizer="momentum", momentum=beta)
    close(run, heavy_ball(Objective(model, problem).gradient, np.ones(4), [0.1] * 200, beta))
    np.testing.assert_array_equal(run.t, 0.1 * np.arange(201))


def test_heavy_ball_without_momentum_is_gradient_descent(case):
    plain = gflow.descend(case.model, case.problem, case.theta0, 0.05, 40)
    ball = gflow.descend(case.model, case.problem, case.theta0, 0.05, 40, optimizer="momentum", momentum=0.0)
    close(ball, plain.theta)


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.7), "eps": 1e-3}])
def test_adam_equals_numpy(options):
    model, problem, _ = quadratic()
    run = gflow.descend(model, problem, np.ones(4), 0.01, 300, optimizer="adam", **options)
    betas, eps = options.get("betas", (0.9, 0.999)), options.get("eps", 1e-8)
    close(run, adam(Objective(model, problem).gradient, np.ones(4), [0.01] * 300, betas, eps))


def test_first_steps_of_adam_have_the_length_of_the_step_size():
    """With the bias corrected, the first step is h sign(g) up to eps."""
    model, problem, _ = quadratic()
    run = gflow.descend(model, problem, np.ones(4), 0.01, 1, optimizer="adam", eps=1e-300)
    g = Objective(model, problem).gradient(np.ones(4))
    np.testing.assert_allclose(run.end - 1, -0.01 * np.sign(g), rtol=100 * EPS)


@pytest.mark.parametrize("beta", [0.3, 0.8])
@pytest.mark.parametrize("excess", [0.98, 1.02])
def test_heavy_ball_is_stable_exactly_below_its_limit(beta, excess):
    """On a quadratic: eta < 2 (1 + beta) / sharpness."""
    model, problem, frame = quadratic()
    run = gflow.descend(
        model, problem, problem.target.ravel() + frame[:, 3], excess * 2 * (1 + beta) / 10.0, 2000,
        optimizer="momentum", momentum=beta,
    )  # fmt: skip
    distance = np.abs(run.end - problem.target.ravel()).max()
    assert distance < 1e-6 if excess < 1 else distance > 1e6


SCHEDULE = 0.1 / np.sqrt(np.arange(1, 61))


@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam"])
def test_schedules(optimizer):
    model, problem, _ = quadratic()
    sizes = SCHEDULE
    run = gflow.descend(model, problem, np.ones(4), sizes, 60, optimizer=optimizer, save_every=7)
    by_call = gflow.descend(
        model, problem, np.ones(4), lambda k: 0.1 / np.sqrt(k + 1), 60, optimizer=optimizer, save_every=7
    )
    np.testing.assert_array_equal(run.theta, by_call.theta)
    gradient = Objective(model, problem).gradient
    wanted = {
        "gd": lambda: heavy_ball(gradient, np.ones(4), sizes, 0.0),
        "momentum": lambda: heavy_ball(gradient, np.ones(4), sizes, 0.9),
        "adam": lambda: adam(gradient, np.ones(4), sizes, (0.9, 0.999), 1e-8),
    }[optimizer]()
    rows = [*range(0, 60, 7), 60]
    np.testing.assert_allclose(run.theta, wanted[rows], rtol=0, atol=1e4 * EPS)
    np.testing.assert_allclose(run.t, np.append(0, np.cumsum(sizes))[rows], rtol=1e-14)
    np.testing.assert_array_equal(gflow.descend(**by_call.spec).theta, run.theta)


def test_small_steps_approach_the_flow_at_first_order():
    case = CASES[5]
    steps = np.array([50, 100, 200, 400, 800])
    exact = gflow.flow(case.model, case.problem, case.theta0, 1.0, rtol=1e-12).end
    errors = [
        np.linalg.norm(gflow.descend(case.model, case.problem, case.theta0, 1 / n, n).end - exact)
        for n in steps
    ]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope + 1) < 0.05


# ---- batches -----------------------------------------------------------------------------------------------

RNG = np.random.default_rng(6)
NORMAL = RNG.standard_normal


def labels(n):
    return np.where(RNG.random(n) < 0.5, -1.0, 1.0)


SUMS = {
    "linear, n > d": (gflow.DeepLinear((3, 4, 2)), gflow.Problem(NORMAL((7, 3)), NORMAL((7, 2)))),
    "linear, n < d": (
        gflow.DeepLinear((8, 2, 1)), gflow.Problem(NORMAL((7, 8)), NORMAL(7), weight_decay=0.3)),
    "sensing": (gflow.DeepLinear((3, 3, 2)), gflow.Problem.sensing(NORMAL((7, 2, 3)), NORMAL(7))),
    "symmetric": (
        gflow.Symmetric(3, 2), gflow.Problem(NORMAL((7, 3)), NORMAL((7, 3)), factor=0.2, weight_decay=0.1)),
    "symmetric sensing": (gflow.Symmetric(3, 2), gflow.Problem.sensing(NORMAL((7, 3, 3)), NORMAL(7))),
    "relu": (gflow.TwoLayerReLU(3, 5, 2), gflow.Problem(NORMAL((7, 3)), NORMAL((7, 2)), weight_decay=0.2)),
    "relu, logistic": (
        gflow.TwoLayerReLU(3, 5, slope=0.1), gflow.Problem(NORMAL((7, 3)), labels(7), loss="logistic")),
    "relu, exponential": (
        gflow.TwoLayerReLU(3, 5, train_outer=False),
        gflow.Problem(NORMAL((7, 3)), labels(7), loss="exponential")),
    "relu, softmax, chain": (
        gflow.TwoLayerReLU(3, 4, 2, first_depth=2),
        gflow.Problem(NORMAL((7, 3)), np.eye(2)[[0, 1, 1, 0, 1, 0, 0]], loss="softmax")),
}  # fmt: skip


@pytest.fixture(params=SUMS.values(), ids=SUMS)
def summed(request):
    """A model on a sum over 7 samples, and a start."""
    model, problem = request.param
    return model, problem, 0.5 * np.random.default_rng(7).standard_normal(model.size)


def part(problem, batch):
    """The problem of a batch alone, written without gflow's own batches."""
    make = gflow.Problem.sensing if problem.kind == "sensing" else gflow.Problem
    loss = {} if problem.kind == "sensing" else {"loss": problem.loss}
    factor = problem.factor * len(problem.X) / len(batch)
    return make(
        problem.X[batch], problem.Y.ravel()[batch] if problem.kind == "sensing" else problem.Y[batch],
        factor=factor, weight_decay=problem.weight_decay, **loss,
    )  # fmt: skip


def drawn(run):
    """The batches of a run, drawn again."""
    seed = np.random.SeedSequence(run.spec["rng"]).generate_state(1, np.uint64)[0]
    size, order = run.spec["batch_size"], np.empty(len(run.spec["problem"].X), dtype=np.int64)
    batches = []
    for step in range(run.spec["n_steps"]):
        place = descent.draw(seed, step, -1, size, int(run.spec["replacement"]), order)
        batches.append(order[place : place + size].copy())
    return batches


@pytest.mark.parametrize("size", [1, 3])
def test_the_mean_over_all_batches_is_the_full_gradient(summed, size):
    model, problem, theta = summed
    o, b = Objective(model, problem), model.batch_arguments(problem, size)
    work, total, count = np.zeros(b.work_size), 0.0, 0
    for batch in combinations(range(7), size):
        order, data, out = np.array([*batch, *[0] * (7 - size)]), b.data.copy(), np.empty(o.size)
        descent._gather(b.samples, b.table, order, 0, size, data)
        o.gradient_kernel.call(0.0, theta, data, b.dims, work, out)
        alone = Objective(model, part(problem, np.array(batch))).gradient(theta)
        np.testing.assert_allclose(out, alone, rtol=0, atol=200 * EPS * abs(alone).max())
        total, count = total + out, count + 1
    full = o.gradient(theta)
    np.testing.assert_allclose(total / count, full, rtol=0, atol=500 * EPS * abs(full).max() * count)


@pytest.mark.parametrize("replacement", [False, True])
def test_batches_equal_numpy(summed, replacement):
    model, problem, theta = summed
    run = gflow.descend(model, problem, theta, 0.02, 11, batch_size=3, rng=1, replacement=replacement)
    for k, batch in enumerate(drawn(run)):
        theta = theta - 0.02 * Objective(model, part(problem, batch)).gradient(theta)
        np.testing.assert_allclose(run.theta[k + 1], theta, rtol=0, atol=1e3 * (k + 1) * EPS)


def test_batches_beyond_a_tile_equal_numpy():
    """Batches of so many samples that the network takes them in tiles, of their own data."""
    model, problem = gflow.TwoLayerReLU(4, 64, 2), gflow.Problem(NORMAL((900, 4)), NORMAL((900, 2)))
    dims = model.batch_arguments(problem, 600).dims
    assert relu._tile(dims) < 600
    theta = model.init(scale=0.5)
    run = gflow.descend(model, problem, theta, 0.02, 4, batch_size=600, rng=1)
    for k, batch in enumerate(drawn(run)):
        w, a = model.unpack(theta)
        x, z = problem.X[batch], problem.X[batch] @ w.T
        pull = 2 * problem.factor * 900 / 600 * (np.maximum(z, 0) @ a.T - problem.Y[batch])
        theta = theta - 0.02 * model.pack([(pull @ a * (z > 0)).T @ x, pull.T @ np.maximum(z, 0)])
        np.testing.assert_allclose(run.theta[k + 1], theta, rtol=0, atol=600 * (k + 1) * EPS)


@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam"])
def test_a_batch_of_all_samples_is_the_full_gradient(summed, optimizer):
    model, problem, theta = summed
    whole = gflow.descend(model, problem, theta, 0.02, 30, optimizer=optimizer)
    batch = gflow.descend(model, problem, theta, 0.02, 30, optimizer=optimizer, batch_size=7)
    np.testing.assert_allclose(batch.theta, whole.theta, rtol=0, atol=1e5 * EPS)


@pytest.mark.parametrize("replacement", [False, True])
def test_the_samples_of_each_step_are_told(replacement):
    rng = np.random.default_rng(0)
    x, y, size, step = rng.standard_normal((7, 3)), rng.standard_normal(7), 2, 0.01
    model, problem = gflow.Diagonal(3, form="product"), gflow.Problem(x, y)
    run = gflow.descend(
        model, problem, model.init(scale=0.5), step, 20, batch_size=size, replacement=replacement, rng=3
    )
    rows = batches(run)
    assert rows.shape == (20, size)
    for k, batch in enumerate(rows):
        u, v = model.unpack(run.theta[k])
        g = 2 * problem.factor * 7 / size * x[batch].T @ (x[batch] @ (u * v) - y[batch])
        np.testing.assert_allclose(
            run.theta[k + 1], np.concatenate([u - step * g * v, v - step * g * u]), rtol=0, atol=10 * EPS
        )
    runs = gflow.ensemble(
        model, problem, model.init(scale=0.5), step_size=step, n_steps=20, batch_size=size,
        replacement=replacement, rng=[2, 3],
    )  # fmt: skip
    np.testing.assert_array_equal(batches(runs[1]), rows)


def test_a_descent_on_the_whole_loss_has_no_batches():
    run = gflow.descend(gflow.DeepLinear((1, 1)), gflow.Problem.factorization([[1.0]]), [0.5], 0.1, 2)
    with pytest.raises(ValueError, match="trajectory must be of a descent with a batch_size"):
        batches(run)


def test_an_epoch_takes_each_sample_once():
    order, seed = np.empty(11, dtype=np.int64), np.uint64(3)
    for epoch in range(20):
        seen = []
        for step in range(3 * epoch, 3 * epoch + 3):
            place = descent.draw(seed, step, step, 3, 0, order)
            seen += order[place : place + 3].tolist()
        assert len(set(seen)) == 9 and set(seen) <= set(range(11))


@pytest.mark.parametrize("replacement", [0, 1])
def test_every_sample_is_as_likely_at_every_place(replacement):
    """Pearson's statistic of 40,000 draws stays below its 1 - 1e-6 quantile, for each place of an epoch."""
    from scipy.stats import chi2

    n, size, epochs, order = 7, 2, 40_000, np.empty(7, dtype=np.int64)
    counts, pairs = np.zeros((6, n)), np.zeros((n, n))
    for step in range(3 * epochs):
        place = descent.draw(np.uint64(11), step, step, size, replacement, order)
        batch = order[place : place + size]
        counts[2 * (step % 3) + np.arange(2), batch] += 1
        pairs[batch[0], batch[1]] += 1
    expected = epochs / n
    assert np.all(np.sum((counts - expected) ** 2, axis=1) / expected < chi2.ppf(1 - 1e-6, n - 1))
    cells = pairs[~np.eye(n, dtype=bool)] if not replacement else pairs.ravel()
    assert replacement or not np.diag(pairs).any()
    expected = 3 * epochs / cells.size
    assert np.sum((cells - expected) ** 2) / expected < chi2.ppf(1 - 1e-6, cells.size - 1)


def test_random_numbers_are_splitmix64():
    """The published sequence of the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    ours = [descent._below(np.uint64(1234567), i, 2**52) for i in range(1, 5)]
    assert ours == [number >> 12 for number in published]


def test_seeds():
    model, problem = SUMS["relu"]
    theta = model.init(scale=0.5)

    def run(rng):
        return gflow.descend(model, problem, theta, 0.05, 40, batch_size=2, rng=rng)

    np.testing.assert_array_equal(run(3).theta, run(3).theta)
    assert not np.array_equal(run(3).theta, run(4).theta)
    by_generator = run(np.random.default_rng(5))
    np.testing.assert_array_equal(by_generator.theta, run(np.random.default_rng(5)).theta)
    fresh = run(None)
    for made in (by_generator, fresh):
        np.testing.assert_array_equal(gflow.descend(**made.spec).theta, made.theta)
    assert not np.array_equal(fresh.theta, run(None).theta)


# ---- continuation ------------------------------------------------------------------------------------------

WAYS = {
    "momentum": {"optimizer": "momentum", "momentum": 0.7},
    "adam": {"optimizer": "adam", "betas": (0.8, 0.9), "eps": 1e-6},
    "batches": {"batch_size": 3, "rng": 5},
    "batches, adam": {"optimizer": "adam", "batch_size": 2, "rng": 5, "replacement": True},
    "kink": {"kink": 0.4, "optimizer": "momentum"},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("through_a_file", [False, True])
@pytest.mark.parametrize("sizes", [0.03, 0.05 / np.sqrt(np.arange(1, 51))], ids=["constant", "schedule"])
def test_every_way_continues_bit_for_bit(options, through_a_file, sizes, tmp_path):
    model, problem = SUMS["relu"]
    theta = model.init("gaussian", scale=0.5)
    whole = gflow.descend(model, problem, theta, sizes, 50, **options)
    half = gflow.descend(
        model, problem, theta, np.resize(sizes, 23) if np.ndim(sizes) else sizes, 23, **options
    )
    if through_a_file:
        half = gflow.load(half.save(tmp_path / "half"))
    rest = gflow.descend(model, problem, None, sizes, 50, start=half)
    np.testing.assert_array_equal(rest.theta, whole.theta[23:])
    np.testing.assert_array_equal(rest.t, whole.t[23:])
    for run in (whole, rest, half):
        again = gflow.descend(**run.spec)
        np.testing.assert_array_equal(again.end, run.end)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_what_was_done_before_an_interrupt_is_kept(options):
    model, problem = SUMS["relu"]
    theta = model.init("gaussian", scale=0.5)
    calls = []

    def press(model, problem, state):
        calls.append(0)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return state[0]

    run = gflow.descend(
        model, problem, theta, 0.03, 60, observe={"first": press}, stop=lambda t, state: False, **options
    )
    assert run.status.code == "interrupted" and 5 < run.counts["steps"] < 60
    whole = gflow.descend(model, problem, theta, 0.03, 60, **options)
    np.testing.assert_array_equal(run.theta, whole.theta[: len(run.t)])
    rest = gflow.descend(model, problem, None, 0.03, 60, start=run)
    np.testing.assert_array_equal(rest.end, whole.end)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_divergence_keeps_the_last_finite_state(optimizer):
    problem = gflow.Problem.factorization([[1.0]])
    size = 2.0 if optimizer == "momentum" else 1e160
    run = gflow.descend(gflow.DeepLinear((1, 1, 1)), problem, [3.0, 2.0], size, 1000, optimizer=optimizer)
    assert run.status.code == "non_finite" and "step size" in run.status.message
    assert np.isfinite(run.theta).all() and 0 < run.counts["steps"] < 1000
    assert np.isfinite(run.state["moments"]).all()


# ---- kinks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slope", "kink"), [(0.0, None), (0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.1, None), (0.1, 0.3)]
)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_slope_at_a_kink(slope, kink, batch_size):
    """One neuron, w on the kink of the first sample and off that of the second: the gradient by hand."""
    x, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([3.0, 1.0])
    w, a = np.array([0.0, 1.0]), 0.5
    model, problem = gflow.TwoLayerReLU(2, 1, slope=slope), gflow.Problem(x, y, factor=0.5)
    run = gflow.descend(
        model, problem, model.pack([w[None], [[a]]]), 0.1, 1, kink=kink, batch_size=batch_size
    )
    at_kink = slope if kink is None else kink
    residual = np.array([0.0 - 3.0, a * 2.0 - 1.0])
    w_new = w - 0.1 * (residual * a * np.array([at_kink, 1.0])) @ x
    a_new = a - 0.1 * residual @ [0.0, 2.0]
    np.testing.assert_allclose(run.end, [*w_new, a_new], rtol=4 * EPS)


def test_the_kink_leaves_the_flow_alone():
    model, problem = SUMS["relu"]
    theta = model.init(scale=0.5)
    before = gflow.flow(model, problem, theta, 1.0).theta
    gflow.descend(model, problem, theta, 0.1, 3, kink=1.0)
    np.testing.assert_array_equal(gflow.flow(model, problem, theta, 1.0).theta, before)
