"""The stochastic flow of diagonal networks: its scheme, its noise, and what holds on every path."""

from __future__ import annotations

import numpy as np
import pytest

import gflow

STEP = 0.02
FORMS = {
    "difference": (2.0, 0.25),
    "product": (1.0, 0.5),
}  # rate of the logarithms, the papers' factor times n
by_form = pytest.mark.parametrize("form", FORMS)


def regression(form="difference", n=5, d=8, seed=0):
    rng = np.random.default_rng(seed)
    x, beta = rng.standard_normal((n, d)), np.zeros(d)
    beta[:2] = [1.0, -1.0]
    return gflow.Problem(x, x @ beta, factor=FORMS[form][1] / n), gflow.Diagonal(d, form=form)


def conserved_in_the_flow(model, theta):
    """log of sqrt(w_+ w_-), or of sqrt((u^2 - v^2) / 2)."""
    a, b = model.unpack(theta)
    return 0.5 * np.log(a * b if model.form == "difference" else 0.5 * (a - b) * (a + b))


@by_form
@pytest.mark.parametrize("seed", range(3))
def test_how_the_start_shrinks_is_exact_on_every_path(form, seed):
    """alpha(t) = alpha exp(-2 c^2 gamma factor diag(X^T X) int L dt), c = 2 or 1, to rounding."""
    problem, model = regression(form)
    alpha = np.geomspace(0.05, 0.2, 8)
    path = gflow.stochastic_flow(
        model, problem, model.init(scale=alpha), np.linspace(0.0, 60.0, 13), STEP, rng=seed
    )
    rate = 2 * FORMS[form][0] ** 2 * STEP * problem.factor * np.sum(problem.X**2, axis=0)
    shrunk = np.log(alpha) - rate * path["loss_integral"][:, None]
    assert np.all(shrunk[-1] < np.log(alpha) - 1e-3)
    # in u^2 - v^2 terms of size u^2 cancel
    a, b = model.unpack(path.theta)
    room = 50 * np.finfo(float).eps
    room = room if form == "difference" else room * (1 + np.maximum(a**2, b**2) / np.exp(2 * shrunk))
    assert np.all(abs(conserved_in_the_flow(model, path.theta) - shrunk) <= room)


def test_the_papers_constants_are_these():
    """arXiv 2106.09524, L = 1/(4 n): alpha_t = alpha exp(-2 gamma diag(X^T X / n) int L)."""
    problem, model = regression()
    path = gflow.stochastic_flow(model, problem, model.init(scale=0.1), 30.0, STEP, rng=0)
    paper = 0.1 * np.exp(-2 * STEP * np.sum(problem.X**2, axis=0) / 5 * path["loss_integral"][-1])
    np.testing.assert_allclose(np.exp(conserved_in_the_flow(model, path.end)), paper, rtol=1e-13)


@by_form
def test_the_limit_is_that_of_the_effective_start(form):
    """arcsinh(beta / (scale alpha_inf^2)) lies in the row space of X, and X beta = y."""
    problem, model = regression(form)
    path = gflow.stochastic_flow(model, problem, model.init(scale=0.1), 2000.0, STEP, rng=1)
    beta = model.predictor(path.end)
    assert path.loss[-1] <= 1e-20
    np.testing.assert_allclose(problem.X @ beta, problem.Y[:, 0], rtol=0, atol=1e-9)
    scale = 2.0 if form == "difference" else 1.0
    off = {}
    for name, alpha in (
        ("effective", np.exp(conserved_in_the_flow(model, path.end))),
        ("initial", np.full(8, 0.1)),
    ):
        image = np.arcsinh(beta / (scale * alpha**2))
        off[name] = abs(image - problem.X.T @ np.linalg.lstsq(problem.X.T, image, rcond=None)[0]).max()
    assert off["effective"] <= 1e-8 < 1e-3 < off["initial"]


def normals(seed, step, n):
    """The documented random numbers, in numpy: splitmix64, then Box and Muller."""
    state, pairs = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]), (n + 1) // 2
    out = []
    for j in range(2 * pairs):
        z = (state + (2 * step * pairs + j) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(((z ^ (z >> 31)) >> 11) * 2.0**-53)
    first, angle = np.array(out[::2]) + 2.0**-53, 2 * np.pi * np.array(out[1::2])
    length = np.sqrt(-2 * np.log(first))
    return np.column_stack([length * np.cos(angle), length * np.sin(angle)]).ravel()[:n]


@pytest.mark.parametrize("form", [*FORMS, "power"])
def test_the_scheme_equals_numpy(form):
    """Log-Euler on the pair itself, step by step."""
    problem, _ = regression(form if form in FORMS else "difference")
    model, dt, seed = gflow.Diagonal(8, form=form), 0.013, 5
    theta0 = model.init("gaussian", scale=0.4, rng=2)
    path = gflow.stochastic_flow(model, problem, theta0, [0.0, dt, 7 * dt, 50 * dt], STEP, rng=seed, dt=dt)
    rate = 1.0 if form == "product" else 2.0
    parts = list(model.unpack(theta0))
    pair = [parts[0] + parts[1], parts[0] - parts[1]] if form == "product" else parts
    x, y, f, states = problem.X, problem.Y[:, 0], problem.factor, []
    for step in range(51):
        theta = (
            np.concatenate([sum(pair), pair[0] - pair[1]]) / 2 if form == "product" else np.concatenate(pair)
        )
        if step in (0, 1, 7, 50):
            states.append(theta)
        r = x @ model.predictor(theta) - y
        loss = f * r @ r
        noise = 2 * np.sqrt(STEP * f * loss * dt) * x.T @ normals(seed, step, 5)
        moved = rate * (2 * f * dt * x.T @ r - noise)
        ito = 2 * rate**2 * STEP * f * loss * dt * np.sum(x**2, axis=0)
        pair = [w * np.exp(sign * moved - ito) for sign, w in zip((-1, 1), pair, strict=False)]
    np.testing.assert_allclose(path.theta, states, rtol=0, atol=1e-13)


def test_without_noise_it_is_euler_in_the_dual():
    """A vanishing step size leaves the flow, with an error of first order in dt."""
    problem, model = regression()
    theta0, dts, errors = model.init(scale=0.1), 0.2 / 2.0 ** np.arange(5), []
    exact = gflow.flow(model, problem, theta0, 8.0, rtol=1e-12).end
    for dt in dts:
        path = gflow.stochastic_flow(model, problem, theta0, 8.0, 1e-30, rng=0, dt=dt)
        errors.append(np.linalg.norm(path.end - exact))
    assert 0.9 <= np.polyfit(np.log(dts), np.log(errors), 1)[0] <= 1.1


def test_the_strong_order_is_one_half():
    """Mean distance of logarithms between paths of one Brownian motion, the finest by the kernel.

    Over a time so short that the noise has more to say than the drift, whose error is of first order.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6))
    problem, model = gflow.Problem(x, x @ [1, -0.8, 0, 0, 0, 0], factor=1 / 16), gflow.Diagonal(6)
    y, f, gamma, alpha, end, steps, runs = problem.Y[:, 0], problem.factor, 0.3, 0.3, 0.1, 256, 400
    theta0, h = model.init(scale=alpha), end / steps
    finest = gflow.ensemble(model, problem, theta0, [end], step_size=gamma, rng=range(runs), dt=h).theta[
        :, -1
    ]
    fine = np.array([[normals(seed, step, 4) for step in range(steps)] for seed in range(runs)])
    dts, errors = h * 2.0 ** np.arange(3, 7), []
    for dt in dts:
        k = round(dt / h)
        brownian = np.sqrt(h) * fine.reshape(runs, steps // k, k, 4).sum(axis=2)
        plus, minus = np.full((2, runs, 6), alpha)
        for step in range(steps // k):
            r = (plus**2 - minus**2) @ x.T - y
            loss = f * np.sum(r**2, axis=1, keepdims=True)
            moved = 2 * (2 * f * dt * r - 2 * np.sqrt(gamma * f * loss) * brownian[:, step]) @ x
            ito = 8 * gamma * f * loss * dt * np.sum(x**2, axis=0)
            plus, minus = plus * np.exp(-moved - ito), minus * np.exp(moved - ito)
        far = np.log(np.hstack([plus, minus]) / finest)
        errors.append(np.mean(np.linalg.norm(far, axis=1)))
    assert 0.4 <= np.polyfit(np.log(dts), np.log(errors), 1)[0] <= 0.65


@pytest.mark.parametrize(("gamma", "alpha"), [(0.1, 0.3), (0.05, 0.1)])
def test_the_default_dt_is_a_part_of_the_step_size_with_little_bias(gamma, alpha):
    """The mean of int L against that of steps a quarter as long."""
    x = np.random.default_rng(0).standard_normal((4, 6))
    problem, model = gflow.Problem(x, x @ [1, -0.8, 0, 0, 0, 0], factor=1 / 16), gflow.Diagonal(6)
    common = {"step_size": gamma, "rng": range(1000)}
    many = gflow.ensemble(model, problem, model.init(scale=alpha), [20.0], **common)
    dt = many.spec["dt"]
    one = gflow.stochastic_flow(model, problem, model.init(scale=alpha), 20.0, gamma, rng=0)
    assert one.spec["dt"] == dt and gamma / dt == pytest.approx(round(gamma / dt)) and one.status.ok
    np.testing.assert_array_equal(one.end, many.theta[0, -1])
    finer = gflow.ensemble(model, problem, model.init(scale=alpha), [20.0], **common, dt=dt / 4)
    a, b = (runs["loss_integral"][:, -1] for runs in (many, finer))
    noise = np.sqrt((a.var() + b.var()) / 1000)
    assert abs(a.mean() - b.mean()) <= 0.01 * b.mean() + 4 * noise
    sharpness = (
        0.5 * np.linalg.eigvalsh((x * abs(np.linalg.lstsq(x, problem.Y[:, 0], rcond=None)[0])) @ x.T)[-1]
    )
    assert dt * sharpness <= 0.05 * (1 + 1e-12)


@by_form
def test_one_step_has_the_noise_of_sgd_on_alike_residuals(form):
    """Mean and covariance of log u ± v or log w± over one step, against SGD's on residuals of one size."""
    problem, model = regression(form)
    problem = gflow.Problem(problem.X, np.array([1.0, -1, 1, 1, -1]), factor=problem.factor)
    theta0, runs, step = model.init(scale=0.1), 4000, 1e-4
    many = gflow.ensemble(model, problem, theta0, [step], step_size=step, rng=range(runs))
    a, b = model.unpack(many.theta[:, -1])
    logs = np.log((a + b) / np.sqrt(0.02) if form == "product" else a / 0.1)
    rate, x, y = FORMS[form][0], problem.X, problem.Y[:, 0]
    each = rate * 2 * 5 * problem.factor * step * x * y[:, None]  # of SGD on each sample, to first order
    second = each.T @ each / 5
    measured = np.cov(logs.T)
    sizes = np.sqrt(np.diag(second))
    spread = np.sqrt(2.0 / runs)  # relative, of a variance
    np.testing.assert_allclose(
        measured / np.outer(sizes, sizes), second / np.outer(sizes, sizes), atol=5 * spread
    )
    assert np.all(abs(logs.mean(axis=0) - each.mean(axis=0)) <= 5 * sizes / np.sqrt(runs))


@pytest.mark.slow
def test_paths_shrink_the_start_as_sgd_does():
    """On average, to the leading order in the step size."""
    problem, model = regression(n=20, d=40)
    theta0, step, runs = model.init(scale=0.1), 0.01, 24
    paths = gflow.ensemble(model, problem, theta0, [60.0], step_size=step, rng=range(runs))
    descents = gflow.ensemble(
        model,
        problem,
        theta0,
        step_size=step,
        n_steps=6000,
        save_every=6000,
        batch_size=1,
        replacement=True,
        rng=0,
    )
    shifts = [
        np.array([np.mean(conserved_in_the_flow(model, end) - np.log(0.1)) for end in one.theta[:, -1]])
        for one in (paths, descents)
    ]
    mean, wanted = (shift.mean() for shift in shifts)
    error = np.sqrt(sum(shift.var() / runs for shift in shifts))
    assert wanted < 0
    assert abs(mean - wanted) <= 5 * error + 0.1 * abs(wanted)


def test_the_random_numbers_are_normal_and_independent():
    drawn = np.array([normals(3, step, 5) for step in range(20000)])
    count = drawn.size
    assert abs(drawn.mean()) <= 5 / np.sqrt(count)
    assert abs(drawn.var() - 1) <= 5 * np.sqrt(2 / count)
    assert abs(np.mean(drawn**4) - 3) <= 5 * np.sqrt(96 / count)
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(5), atol=5 / np.sqrt(20000))
    assert abs(np.mean(drawn[1:] * drawn[:-1])) <= 5 / np.sqrt(count)


# ---- the interface -----------------------------------------------------------------------------------------


def test_a_seed_gives_the_path_whatever_is_saved():
    problem, model = regression()
    theta0 = model.init(scale=0.1)
    one = gflow.stochastic_flow(model, problem, theta0, 10.0, STEP, rng=7)
    fine = gflow.stochastic_flow(model, problem, theta0, np.arange(0.0, 10.1, 0.5), STEP, rng=7)
    np.testing.assert_array_equal(one.end, fine.end)
    assert np.any(gflow.stochastic_flow(model, problem, theta0, 10.0, STEP, rng=8).end != one.end)
    drawn = gflow.stochastic_flow(model, problem, theta0, 10.0, STEP, rng=np.random.default_rng(0))
    again = gflow.stochastic_flow(**drawn.spec)
    np.testing.assert_array_equal(drawn.theta, again.theta)
    assert one.t.tolist() == [0.0, 10.0] and one.counts["steps"] == 500


@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_continuation_equals_the_whole_bit_for_bit(through_a_file, tmp_path):
    problem, model = regression()
    whole = gflow.stochastic_flow(model, problem, model.init(scale=0.1), [0.0, 5.0, 20.0], STEP, rng=1)
    first = gflow.stochastic_flow(model, problem, model.init(scale=0.1), 5.0, STEP, rng=1)
    if through_a_file:
        first = gflow.load(first.save(tmp_path / "first"))
        np.testing.assert_array_equal(first.log_theta, whole.log_theta[:2])
    rest = gflow.stochastic_flow(model, problem, None, [20.0], STEP, start=first)
    np.testing.assert_array_equal(rest.end, whole.end)
    np.testing.assert_array_equal(rest["loss_integral"][-1], whole["loss_integral"][-1])
    assert rest.counts == whole.counts


def test_an_ensemble_equals_the_single_paths_bit_for_bit(tmp_path):
    problem, model = regression()
    thetas = np.array([model.init(scale=a) for a in (0.1, 0.2, 0.3)])
    times = [0.0, 1.0, 9.0]
    many = gflow.ensemble(model, problem, thetas, times, step_size=STEP, rng=[4, 9, 2], observe="loss")
    alone = gflow.ensemble(model, problem, thetas, times, step_size=STEP, rng=[4, 9, 2], jobs=1)
    np.testing.assert_array_equal(many.theta, alone.theta)
    loaded = gflow.Ensemble.load(many.save(tmp_path / "many"))
    for r, seed in enumerate((4, 9, 2)):
        one = gflow.stochastic_flow(model, problem, thetas[r], times, STEP, rng=seed, observe="loss")
        for run in (many[r], loaded[r], gflow.stochastic_flow(**many[r].spec)):
            np.testing.assert_array_equal(run.theta, one.theta)
            np.testing.assert_array_equal(run.log_theta, one.log_theta)
            np.testing.assert_array_equal(run["loss"], one["loss"])
            np.testing.assert_array_equal(run["loss_integral"], one["loss_integral"])
    assert set(many.codes) == {"finished"}
    np.testing.assert_array_equal(gflow.ensemble(**loaded.spec).theta, many.theta)
    # one start and one seed make a row of seeds
    row = gflow.ensemble(model, problem, np.tile(thetas[0], (4, 1)), 2.0, step_size=STEP, rng=5)
    np.testing.assert_array_equal(
        row.theta[3], gflow.stochastic_flow(model, problem, thetas[0], 2.0, STEP, rng=8).theta
    )


def test_observers_and_stop_see_the_parameters():
    problem, model = regression()
    seen = []

    def stop(t, theta):
        seen.append((t, theta))
        return t >= 3.0

    path = gflow.stochastic_flow(
        model, problem, model.init(scale=0.1), np.arange(0.0, 6.0), STEP, rng=0, stop=stop, observe="loss"
    )
    assert path.outcome.code == "stopped" and path.t[-1] == pytest.approx(3.0)
    np.testing.assert_array_equal(path["loss"], path.loss)
    assert all(theta.shape == (model.size,) for _, theta in seen)
    with pytest.raises(ValueError, match="smaller dt"):
        path.error_estimate()


def test_a_path_that_blows_up_keeps_what_it_has_and_a_coarse_one_says_so():
    problem, model = regression()
    theta0 = model.init(scale=1.0)
    path = gflow.stochastic_flow(model, problem, theta0, 1e4, 1e-30, rng=0, dt=5.0)
    assert path.outcome.code == "non_finite" and "dt = 5" in path.outcome.message
    assert np.isfinite(path.theta).all() and np.isfinite(path.loss).all()
    assert path.t[-1] == 5.0 * path.counts["steps"] > 0
    coarse = gflow.stochastic_flow(model, problem, theta0, 1e4, 1e-6, rng=0, dt=50.0)
    assert coarse.outcome.code == "finished" and not coarse.status.ok
    assert coarse.status.warnings[0].startswith("coarse")
    assert gflow.stochastic_flow(model, problem, theta0, 10.0, 0.01, rng=0).status.ok


def small():
    x = np.random.default_rng(0).standard_normal((4, 6))
    return gflow.Diagonal(6), gflow.Problem(x, x @ [1, -0.8, 0, 0, 0, 0], factor=1 / 16)


def test_steps_that_are_too_long_are_told_of():
    """Above the limit of stability, where the path oscillates for ever; at a fifth of it, where it is biased; stopped or not."""
    model, problem = small()
    theta0 = model.init(scale=0.1)
    path = gflow.stochastic_flow(model, problem, theta0, [5.0, 10, 20, 40], 1e-30, rng=0, dt=1.0)
    assert path.loss[-1] > 1e-3 and path.status.warnings[0].startswith("coarse: one step may have")
    biased = gflow.stochastic_flow(model, problem, theta0, 40.0, 0.2, rng=0, dt=0.2)
    assert biased.outcome.code == "finished" and not biased.status.ok
    stopped = gflow.stochastic_flow(
        model, problem, theta0, np.arange(41.0), 1e-30, rng=0, dt=1.0, stop=lambda t, x: t > 20
    )
    assert stopped.outcome.code == "stopped" and not stopped.status.ok
    rest = gflow.stochastic_flow(model, problem, None, 50.0, 1e-30, start=path)
    assert not rest.status.ok
    many = gflow.ensemble(model, problem, theta0, [40.0], step_size=0.2, dt=0.2, rng=[0])
    assert many[0].status == biased.status


@pytest.mark.parametrize(("times", "dt"), [(1000.0, 1000.0), (np.arange(20) * 200.0, 200.0)])
def test_no_state_that_blew_up_is_saved(times, dt):
    """Whether it does so in the last step, or in one that is to be saved."""
    model, problem = small()
    path = gflow.stochastic_flow(
        model, problem, model.init(scale=1.0), times, 1e-30, rng=0, dt=dt, observe="loss"
    )
    assert path.outcome.code == "non_finite"
    assert np.isfinite(path.theta).all() and np.isfinite(path.loss).all() and np.all(np.diff(path.t) > 0)
    assert path.t[-1] == dt * path.counts["steps"]
    np.testing.assert_array_equal(path["loss"], path.loss)


PROBLEM, MODEL = regression()
THETA0 = MODEL.init(scale=0.1)


def run(**changes):
    arguments = {"model": MODEL, "problem": PROBLEM, "theta0": THETA0, "t": 1.0, "step_size": STEP, "rng": 0}
    return gflow.stochastic_flow(**{**arguments, **changes})


def many(**changes):
    arguments = {"model": MODEL, "problem": PROBLEM, "thetas": THETA0, "t": 1.0, "step_size": STEP, "rng": 0}
    return gflow.ensemble(**{**arguments, **changes})


def logistic():
    return gflow.Problem(PROBLEM.X, np.ones(5), "logistic")


WRONG = {
    "another family": (lambda: run(model=gflow.DeepLinear((8, 1)), theta0=np.ones(8)), "model", "DeepLinear"),
    "depth 3": (lambda: run(model=gflow.Diagonal(8, 3)), "model", "depth=3"),
    "another loss": (lambda: run(problem=logistic()), "problem", "logistic"),
    "weight decay": (
        lambda: run(problem=gflow.Problem(PROBLEM.X, PROBLEM.Y, weight_decay=0.1)), "problem", "0.1"),
    "step_size 0": (lambda: run(step_size=0.0), "step_size", "0.0"),
    "dt < 0": (lambda: run(dt=-1.0), "dt", "-1.0"),
    "scheme": (lambda: run(scheme="milstein"), "scheme", "milstein"),
    "rng": (lambda: run(rng=-1), "rng", "-1"),
    "t inf": (lambda: run(t=np.inf), "t", "inf"),
    "t in one step": (lambda: run(t=[0.0, 0.001]), "t", "0.001"),
    "theta0": (lambda: run(theta0=np.ones(3)), "theta0", r"\(3,\)"),
    "start of a flow": (
        lambda: run(theta0=None, start=gflow.flow(MODEL, PROBLEM, THETA0, 1.0)), "start", "stochastic_flow"),
    "other step_size": (lambda: run(theta0=None, start=run(), t=2.0, step_size=0.1), "step_size", "0.1"),
    "n_steps with t": (lambda: many(n_steps=3), "n_steps", "descents"),
    "rtol of paths": (lambda: many(rtol=1e-3), "rtol", "paths"),
    "optimizer of paths": (lambda: many(optimizer="adam"), "optimizer", "paths"),
    "dt of descents": (lambda: many(t=None, n_steps=3, dt=0.1), "dt", "descents"),
    "too many seeds": (lambda: many(thetas=np.tile(THETA0, (2, 1)), rng=[1, 2, 3]), "thetas", "3 runs"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "argument", "came"), WRONG.values(), ids=WRONG)
def test_it_is_refused_by_name(call, argument, came):
    with pytest.raises(ValueError, match=rf"(?s)^(?=.*\b{argument}).*{came}"):
        call()
