"""TwoLayerReLU: inits, bad input, and what flow() promises of it: continuation, save times, records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import CHAINS
from scipy.integrate import solve_ivp

import gflow
from gflow.objective import Objective

RNG = np.random.default_rng(26)
X = RNG.standard_normal((10, 3))
Y = X @ RNG.standard_normal(3) + 0.5 * RNG.standard_normal(10)
MODEL, PROBLEM = gflow.TwoLayerReLU(3, 8), gflow.Problem(X, Y)
START = MODEL.init("balanced", scale=0.5, rng=1)
END = 20.0


def run(t=END, **options):
    return gflow.flow(MODEL, PROBLEM, START, t, **options)


@pytest.fixture(scope="module")
def whole():
    """One long run, with crossings and slides, at many times."""
    trajectory = run(np.linspace(0, END, 101))
    assert trajectory.status.ok and len(trajectory.events.t) > 15
    assert {"slide", "activate", "deactivate"} <= set(trajectory.events.kind)
    return trajectory


def same_events(a, b, after=-1.0):
    later = a.events.t > after
    for one, other in zip(a.events, b.events, strict=True):
        np.testing.assert_array_equal(one[later], other)


# -- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("middle", [0.3, 5.0, 12.34])
@pytest.mark.parametrize("stored", [False, True])
def test_continuation_is_bit_for_bit(whole, middle, stored, tmp_path):
    first = run(middle)
    if stored:
        first = gflow.load(first.save(tmp_path / "first.npz"))
    rest = gflow.flow(MODEL, PROBLEM, None, whole.t[whole.t > middle], start=first)
    np.testing.assert_array_equal(rest.theta, whole.theta[whole.t > middle])
    for name in ("accepted", "rejected"):  # the gradients also count what saving took
        assert rest.counts[name] == whole.counts[name]
    assert rest.status.code == "finished"


def test_the_tables_of_both_parts_are_the_table_of_the_whole(whole):
    """No event is lost at the seam or told twice, wherever the seam lies between and upon events."""
    e = whole.events
    seams = [e.t[0], 0.5 * (e.t[3] + e.t[4]), e.t[7], np.nextafter(e.t[9], 0), np.nextafter(e.t[9], 99), 15.0]
    for seam in seams:
        first = run(float(seam))
        rest = gflow.flow(MODEL, PROBLEM, None, END, start=first)
        np.testing.assert_array_equal(rest.end, whole.end)
        joined = [np.concatenate(pair) for pair in zip(first.events, rest.events, strict=True)]
        for one, other in zip(joined, e, strict=True):
            np.testing.assert_array_equal(one, other)


def test_continuation_after_stop_and_max_steps(whole):
    stopped = run(END, stop=lambda t, theta: t > 3.0)
    assert stopped.status.code == "stopped" and 3.0 < stopped.t[-1] < END
    np.testing.assert_array_equal(gflow.flow(MODEL, PROBLEM, None, END, start=stopped).end, whole.end)
    short = run(END, max_steps=20)
    assert short.status.code == "max_steps"
    np.testing.assert_array_equal(gflow.flow(MODEL, PROBLEM, None, END, start=short).end, whole.end)


def test_save_times_change_neither_steps_nor_events(whole):
    plain = run(END)
    np.testing.assert_array_equal(plain.end, whole.end)
    same_events(plain, whole)
    for one, other in zip(plain.steps, whole.steps, strict=True):
        np.testing.assert_array_equal(one, other)


def test_states_saved_at_events(whole):
    """A save time may be an event's own, to the bit: the state there lies on the kink."""
    at = np.unique(whole.events.t)
    saved = run(np.append(at, END))
    np.testing.assert_array_equal(saved.end, whole.end)
    same_events(saved, whole)
    W = MODEL.first_layer(saved.theta)
    for t, j, i, _ in zip(*whole.events, strict=True):
        w = W[np.searchsorted(at, t), j]
        assert abs(w @ X[i]) < 1e-11 * np.linalg.norm(w) * np.linalg.norm(X[i])


def test_steps_and_table_are_in_order(whole):
    starts, lengths, accepted = whole.steps
    np.testing.assert_allclose(starts[accepted][1:], (starts + lengths)[accepted][:-1], rtol=1e-13)
    e = whole.events
    assert np.all(np.diff(e.t) >= 0) and e.t.min() >= 0 and e.t.max() <= END
    assert set(e.neuron) <= set(range(8)) and set(e.sample) <= set(range(10))
    ends = (starts + lengths)[accepted]
    assert all(np.min(np.abs(ends - t)) < 1e-12 * max(t, 1) for t in e.t)


def test_dense_output_is_continuous_and_right_across_events(whole):
    dense = run(END, dense=True)
    assert dense.status.ok
    size = np.linalg.norm(whole.theta, axis=1)
    error = np.linalg.norm(dense.at(whole.t) - whole.theta, axis=1) / size
    assert error.max() < 1e-7  # other steps, both at rtol 1e-9
    at = dense.events.t[dense.events.t > 0]
    gap = dense.at(at) - dense.at(np.nextafter(at, 0))
    assert np.abs(gap).max() < 1e-12
    np.testing.assert_allclose(dense.at(END), dense.end, rtol=0, atol=1e-9)


def test_dense_output_goes_on_after_a_continuation():
    first = run(4.0, dense=True)
    rest = gflow.flow(MODEL, PROBLEM, None, END, start=first, dense=True)
    whole = run(END, dense=True)
    np.testing.assert_array_equal(rest.end, whole.end)
    t = np.linspace(4.0, END, 200)
    np.testing.assert_array_equal(rest.at(t), whole.at(t))


def test_save_load_and_rerun(whole, tmp_path):
    loaded = gflow.load(whole.save(tmp_path / "run.npz"))
    np.testing.assert_array_equal(loaded.theta, whole.theta)
    same_events(loaded, whole)
    assert loaded.events.kind.dtype.kind == "U" and loaded.events.neuron.dtype.kind == "i"
    again = gflow.flow(**loaded.spec)
    np.testing.assert_array_equal(again.theta, whole.theta)
    same_events(again, whole)
    assert again.status.message == whole.status.message


def test_a_rerun_says_again_that_the_flow_is_not_unique(tmp_path):
    model = gflow.TwoLayerReLU(2, 1, train_outer=False)
    problem = gflow.Problem([[1.0, 0.0], [-0.5, 1.0]], [1.0, 2.0], factor=0.5)
    first = gflow.flow(model, problem, [0.0, 1.0, 1.0], 1.0)
    loaded = gflow.load(first.save(tmp_path / "run.npz"))
    assert loaded.status.warnings == first.status.warnings != ()
    assert list(loaded.events.kind) == ["not_unique"]


def test_the_error_estimate_measures_the_error(whole):
    exact = run(whole.t, rtol=1e-13)
    error = np.linalg.norm(whole.theta - exact.theta, axis=1) / np.linalg.norm(exact.theta, axis=1)
    estimate = whole.error_estimate()
    assert estimate.reference.events is not None
    assert error.max() < 1e-7
    assert 0.5 * error.max() < estimate.theta.max() < 2 * error.max()


def test_observables_on_the_way(whole):
    seen = run(whole.t, observe={"z": lambda model, problem, theta: model.first_layer(theta) @ problem.X.T})
    np.testing.assert_array_equal(seen["z"], MODEL.first_layer(whole.theta) @ X.T)


def test_without_events():
    located, plain = run(0.02), run(0.02, events=False)
    assert plain.events is None and located.events is not None
    assert "Kinks were not located (events=False)" in plain.status.message
    assert "Kinks" not in located.status.message
    np.testing.assert_allclose(plain.end, located.end, rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="start must be a trajectory with events"):
        gflow.flow(MODEL, PROBLEM, None, 1.0, start=plain)


def test_a_run_without_events_says_so_wherever_it_ends():
    """Also where it is cut off: the numbers are as doubtful there."""
    cut = run(END, events=False, max_steps=50)
    assert cut.status.code == "max_steps" and "Kinks were not located" in cut.status.message


@pytest.mark.parametrize("depth", [2, 3])
def test_a_chain_of_first_layers_runs_without_events_only(depth):
    model = gflow.TwoLayerReLU(3, 4, first_depth=depth)
    theta0 = model.init("balanced", scale=0.3)
    with pytest.raises(ValueError, match="events must be False for a network with first_depth > 1"):
        gflow.flow(model, PROBLEM, theta0, 0.1)
    trajectory = gflow.flow(model, PROBLEM, theta0, 0.1, events=False)
    assert trajectory.status.code == "finished" and np.all(np.diff(trajectory.loss) < 0)
    assert "Kinks were not located" in trajectory.status.message
    with pytest.raises(ValueError, match="hvp"):
        gflow.observe.sharpness(model, PROBLEM, theta0)


def chain_flow(case, t, **settings):
    return gflow.flow(case.model, case.problem, case.theta0, t, events=False, **settings)


by_chain = pytest.mark.parametrize("case", CHAINS, ids=lambda case: case.name)


@by_chain
def test_what_a_chain_conserves(case):
    """Along the gradient every invariant, being quadratic, has the slope that a central difference has: zero."""
    model, theta = case.model, case.theta0
    gradient = Objective(model, case.problem).gradient(theta)
    (up, sizes), (down, _) = model.invariants(theta + gradient), model.invariants(theta - gradient)
    assert up.size == (model.first_depth - 1) * model.width**2 + model.width
    assert np.abs(up - down).max() < 1e-14 * sizes.max() * 10
    other = np.random.default_rng(0).standard_normal(theta.size)  # the test can fail
    assert np.abs(model.invariants(theta + other)[0] - model.invariants(theta - other)[0]).max() > 0.1
    w, *_, last, a = model.unpack(theta)
    value = model.invariants(theta)[0]
    np.testing.assert_allclose(
        value[-model.width :], np.sum(a**2, axis=0) - np.sum(last**2, axis=1), rtol=1e-15
    )
    second = model.unpack(theta)[1]
    np.testing.assert_allclose(
        value[: model.width**2].reshape(model.width, -1), second.T @ second - w @ w.T, rtol=0, atol=1e-15
    )


@by_chain
def test_the_flow_of_a_chain_conserves_it_over_kinks(case):
    run = chain_flow(case, np.linspace(0.0, case.end, 5))
    patterns = [case.model.first_layer(theta) @ case.problem.X.T > 0 for theta in (case.theta0, run.end)]
    assert np.any(patterns[0] != patterns[1])
    assert run.gauges.invariant_drift.max() < 1e-10


def test_a_chain_with_a_fixed_outer_layer_or_weight_decay():
    case = CHAINS[1]
    fixed = replace(case.model, train_outer=False)
    assert fixed.invariants(case.theta0)[0].size == 2 * case.model.width**2
    for model, decay in ((fixed, 0.0), (case.model, 0.2)):
        problem = replace(case.problem, weight_decay=decay)
        run = gflow.flow(model, problem, case.theta0, case.end, events=False)
        assert run.gauges.invariant_drift.max() < 1e-10  # with decay μ they fall as e^(−2μt)
        moved = np.abs(model.invariants(run.end)[0] - model.invariants(case.theta0)[0]).max()
        assert (moved > 0.1) == (decay > 0)


@by_chain
def test_the_flow_of_a_chain_equals_scipy(case):
    run = chain_flow(case, case.end)
    gradient = Objective(case.model, case.problem).gradient
    referee = solve_ivp(
        lambda t, y: -gradient(y), (0.0, case.end), case.theta0, "DOP853", rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        run.end, referee.y[:, -1], rtol=0, atol=1e-7
    )  # steps over kinks are of order one


@by_chain
def test_a_chain_continues_bit_for_bit_and_in_ensembles(case):
    times = np.linspace(0.0, case.end, 5)
    whole = chain_flow(case, times)
    head = chain_flow(case, times[:3])
    tail = gflow.flow(case.model, case.problem, None, times[3:], start=head, events=False)
    np.testing.assert_array_equal(np.vstack([head.theta, tail.theta]), whole.theta)
    runs = gflow.ensemble(case.model, case.problem, case.theta0[None], times, events=False)
    np.testing.assert_array_equal(runs.theta[0], whole.theta)


# -- inits ----------------------------------------------------------------------------------------


def parts(model, theta):
    return np.linalg.norm(model.first_layer(theta), axis=1), model.outer_layer(theta)


def test_gaussian_init_has_its_standard_deviation():
    for outputs in (1, 3):
        model = gflow.TwoLayerReLU(20, 500, outputs)
        theta = model.init("gaussian", scale=0.1, rng=3)
        W, A = model.unpack(theta)
        for part in (W, A):  # five standard deviations of the estimate
            assert np.std(part) == pytest.approx(0.1, rel=5 / np.sqrt(2 * part.size))
            assert abs(np.mean(part)) < 0.5 / np.sqrt(part.size)


@pytest.mark.parametrize("outputs", [1, 3])
def test_balanced_init(outputs):
    model = gflow.TwoLayerReLU(20, 500, outputs)
    w, a = parts(model, model.init("balanced", scale=0.1, rng=3))
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), w, rtol=1e-14)
    assert np.mean(w**2) == pytest.approx(0.01, rel=5 * np.sqrt(2 / 10_000))


@pytest.mark.parametrize("outputs", [1, 3])
def test_dominated_init(outputs):
    model = gflow.TwoLayerReLU(4, 2000, outputs)
    w, a = parts(model, model.init("dominated", scale=0.1, rng=3))
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), 0.1, rtol=1e-14)
    assert w.max() <= 0.1
    # uniform in the ball: (|w| / scale)^4 is uniform on [0, 1]
    assert np.mean((w / 0.1) ** 4) == pytest.approx(0.5, abs=5 / np.sqrt(12 * 2000))


@pytest.mark.parametrize("kind", ["gaussian", "balanced", "dominated"])
def test_signs_outer_and_seeds(kind):
    model, signs = gflow.TwoLayerReLU(3, 6), np.array([1, -1, 1, 1, -1, -1])
    np.testing.assert_array_equal(np.sign(parts(model, model.init(kind, signs=signs))[1][0]), signs)
    free, given = model.init(kind, rng=5), model.init(kind, rng=5, signs=signs)
    np.testing.assert_array_equal(np.abs(free), np.abs(given))
    np.testing.assert_allclose(np.abs(parts(model, model.init(kind, outer=0.4))[1]), 0.4, rtol=1e-15)
    np.testing.assert_array_equal(model.init(kind, rng=7), model.init(kind, rng=np.random.default_rng(7)))
    assert not np.array_equal(model.init(kind, rng=7), model.init(kind, rng=8))
    assert not np.array_equal(model.init(kind, rng=None), model.init(kind, rng=None))


@pytest.mark.parametrize("depth", [2, 3])
def test_a_chain_is_orthogonal_and_carries_the_same_first_layer(depth):
    model = gflow.TwoLayerReLU(3, 6, first_depth=depth)
    theta = model.init("balanced", scale=0.2, rng=4)
    for matrix in model.unpack(theta)[1:-1]:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(6), atol=1e-14)
    w, a = parts(model, theta)
    np.testing.assert_allclose(np.abs(a[0]), w, rtol=1e-13)


def test_pack_unpack_and_function():
    model = gflow.TwoLayerReLU(2, 3, 2, slope=0.5)
    W, A = np.arange(6.0).reshape(3, 2) - 3, np.arange(6.0).reshape(2, 3)
    theta = model.pack([W, A])
    np.testing.assert_array_equal(theta, [*W.ravel(), *A.ravel()])
    np.testing.assert_array_equal(model.unpack(theta)[1], A)
    z = W @ [1.0, 2.0]
    np.testing.assert_allclose(
        model.function(theta, [[1.0, 2.0]]), [A @ np.where(z > 0, z, z / 2)], rtol=1e-15
    )


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": 0}, "inputs"),
        ({"width": 0}, "width"),
        ({"width": 2.5}, "width"),
        ({"width": True}, "width"),
        ({"outputs": -1}, "outputs"),
        ({"first_depth": 0}, "first_depth"),
        ({"slope": 1.0}, r"slope must lie in \[0, 1\)"),
        ({"slope": -0.1}, "slope"),
        ({"slope": np.nan}, "slope"),
        ({"slope": True}, "slope"),
        ({"train_outer": 1}, "train_outer"),
        ({"train_outer": None}, "train_outer"),
    ],
)
def test_bad_models(arguments, message):
    with pytest.raises(ValueError, match=message):
        gflow.TwoLayerReLU(**{"inputs": 2, "width": 3, **arguments})


@pytest.mark.parametrize("slope", ["0.1", None, [0.1]])
def test_a_slope_that_is_no_number(slope):
    with pytest.raises(ValueError, match="slope"):
        gflow.TwoLayerReLU(2, 3, slope=slope)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "orthogonal"}, "kind"),
        ({"scale": 0.0}, "scale"),
        ({"scale": -1.0}, "scale"),
        ({"scale": np.inf}, "scale"),
        ({"outer": 0.0}, "outer"),
        ({"outer": np.nan}, "outer"),
        ({"signs": [1, -1]}, "signs"),
        ({"signs": [1, -1, 0]}, r"signs must hold 3 entries \+1 or -1"),
        ({"signs": [1, -1, 0.5]}, "signs"),
        ({"signs": [1, np.nan, 1]}, "signs"),
        ({"signs": "+-+"}, "signs"),
    ],
)
def test_bad_inits(arguments, message):
    with pytest.raises(ValueError, match=message):
        gflow.TwoLayerReLU(2, 3).init(**arguments)


def test_signs_need_one_output():
    with pytest.raises(ValueError, match="signs.*one output"):
        gflow.TwoLayerReLU(2, 3, 2).init(signs=[1, 1, -1])


@pytest.mark.parametrize(
    ("labels", "loss"),
    [([0.0, 1.0], "logistic"), ([1.0, 2.0], "exponential"), ([[1.0, 1.0], [0.0, 1.0]], "softmax"),
     ([1.0, 1.0], "softmax"), ([[1.0, -1.0], [1.0, 1.0]], "logistic"), ([[-0.5, 1.5], [0.0, 1.0]], "softmax"),
     ([np.nan, 1.0], "square"), ([1.0, 1.0, 1.0], "square"), ([1.0, 1.0], "hinge")],
)  # fmt: skip
def test_bad_labels(labels, loss):
    with pytest.raises(ValueError, match="loss" if loss == "hinge" else "Y"):
        gflow.Problem(np.eye(2), labels, loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta0": START[:-1]}, "theta0"),
        ({"theta0": START[None]}, "theta0"),
        ({"theta0": np.where(np.arange(START.size) == 3, np.nan, START)}, "theta0"),
        ({"theta0": START + 0j}, "theta0"),
        ({"problem": gflow.Problem(X[:, :2], Y)}, "problem must have 3 inputs and 1 outputs"),
        ({"problem": gflow.Problem(X, np.ones((10, 2)))}, "problem must have 3 inputs and 1 outputs"),
        ({"problem": gflow.Problem.factorization(np.ones((1, 3)))}, "problem.*kind 'factorization'"),
        ({"problem": gflow.Problem.completion(np.ones((1, 3)), np.ones((1, 3)))}, "kind 'completion'"),
        ({"problem": gflow.Problem.sensing(np.ones((4, 1, 3)), np.ones(4))}, "kind 'sensing'"),
        ({"problem": gflow.Problem(np.zeros((2, 3)), [1.0, 2.0])}, "X must have an input that is not zero"),
        ({"problem": (X, Y)}, "problem"),
        ({"t": -1.0}, "t must"),
        ({"t": [1.0, 0.5]}, "t must increase"),
        ({"rtol": 0.0}, "rtol"),
    ],
)
def test_bad_runs(change, message):
    with pytest.raises(ValueError, match=message):
        gflow.flow(**{"model": MODEL, "problem": PROBLEM, "theta0": START, "t": 1.0, **change})


@pytest.mark.parametrize("wrong", [[np.ones((3, 2))], [np.ones((2, 3)), np.ones((1, 3))], 3.0])
def test_bad_packs(wrong):
    with pytest.raises(ValueError, match="arrays"):
        gflow.TwoLayerReLU(2, 3).pack(wrong)


def test_sensitivity_of_a_piecewise_flow_is_refused_with_the_reason(whole):
    """The Hessian of one pattern says nothing of the others: no number, and not another solver's excuse."""
    with pytest.raises(ValueError, match="kink|event|pattern"):
        whole.sensitivity()
