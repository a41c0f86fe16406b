"""What one call leaves to the next: packed data of a problem, and compiled loops entered without a look at types."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np
import pytest

import gflow
from gflow._key import key_of_values
from gflow.kernels import abi
from gflow.objective import Objective


@numba.njit
def bowl_gradient(t, theta, data, dims, work, out):
    for i in range(theta.size):
        out[i] = data[i] * theta[i]


class Bowl:
    """L = sum_i rates[i] theta[i]^2 / 2, whose flow is theta[i] e^(-rates[i] t)."""

    size = 2
    gradient = bowl_gradient

    def kernel_arguments(self, problem):
        return self.rates, np.zeros(1, dtype=np.int64), 1


@dataclass(frozen=True)
class BowlByValue(Bowl):
    rates: np.ndarray


@dataclass(frozen=True, eq=False)
class BowlByIdentity(Bowl):
    rates: np.ndarray


@pytest.mark.parametrize("kind", [BowlByValue, BowlByIdentity])
def test_an_array_of_a_frozen_model_may_change_between_calls(kind):
    problem, model = gflow.Problem.factorization([[2.0]]), kind(np.array([1.0, 3.0]))
    for _ in range(2):
        end = gflow.flow(model, problem, [1.0, 2.0], 1.5).end
        assert end == pytest.approx(
            [np.exp(-1.5 * model.rates[0]), 2 * np.exp(-1.5 * model.rates[1])], rel=1e-8
        )
        model.rates[:] = 0.5, 0.1


def regression(loss="square"):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((12, 3))
    y = x @ [1.0, -0.5, 0.3]
    return gflow.Problem(x, y if loss == "square" else np.sign(y), loss=loss)


MODELS = gflow.DeepLinear((3, 2, 1)), gflow.Diagonal(3), gflow.TwoLayerReLU(3, 4), gflow.DeepLinear((3, 3, 1))


def test_networks_in_turn_and_in_threads_on_one_problem_do_not_mix():
    starts = [model.init("gaussian", 0.4, rng=3) for model in MODELS]

    def run(model, start, problem):
        trajectory = gflow.flow(model, problem, start, [0.5, 4.0], rtol=1e-6)
        return trajectory.theta.tobytes(), gflow.descend(model, problem, start, 0.05, 20).theta.tobytes()

    alone = [run(model, start, regression()) for model, start in zip(MODELS, starts, strict=True)]
    shared, order = regression(), np.random.default_rng(0).permutation(np.repeat(np.arange(len(MODELS)), 12))
    assert [run(MODELS[i], starts[i], shared) for i in order] == [alone[i] for i in order]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: run(MODELS[i], starts[i], shared), order)) == [alone[i] for i in order]


def test_what_a_problem_has_been_used_for_is_none_of_its_state():
    fresh, used = regression(), regression()
    trajectory = gflow.flow(MODELS[0], used, MODELS[0].init("gaussian", 0.4, rng=3), 1.0)
    assert key_of_values({"problem": fresh}) == key_of_values({"problem": used})
    copied = pickle.loads(pickle.dumps(used))
    again = gflow.flow(MODELS[0], copied, trajectory.theta[0], 1.0)
    assert np.array_equal(again.theta, trajectory.theta)


def test_equal_networks_share_what_they_see_of_a_problem_but_not_what_is_written():
    problem = regression()
    one, other = (Objective(gflow.DeepLinear((3, 2, 1)), problem) for _ in range(2))
    assert one.data is other.data
    assert one.work is not other.work


class ByColumns(gflow.Diagonal):
    """One whose table of arrays lies in memory column by column."""

    def batch_arguments(self, problem, size):
        made = super().batch_arguments(problem, size)
        return made._replace(table=np.asfortranarray(made.table))


def continued(tmp_path):
    """Runs that go on from a file."""
    model, problem = MODELS[0], regression()
    half = gflow.flow(model, problem, model.init("gaussian", 0.4, rng=3), 1.0)
    gflow.flow(model, problem, None, 2.0, start=gflow.load(half.save(tmp_path / "flow")))
    relu = MODELS[2]
    half = gflow.flow(relu, problem, relu.init("gaussian", 0.4, rng=3), 1.0)
    gflow.flow(relu, problem, None, 2.0, start=gflow.load(half.save(tmp_path / "relu")))
    half = gflow.descend(model, problem, half.spec["theta0"][: model.size], 0.05, 5, optimizer="adam")
    gflow.descend(model, problem, None, 0.05, 9, start=gflow.load(half.save(tmp_path / "descent")))


def of_all_kinds(tmp_path):
    """A run of every compiled loop, with arguments of many kinds."""
    problem, labels = regression(), regression("logistic")
    for model in MODELS[:3]:
        start = model.init("gaussian", 0.4, rng=3)
        smooth = not isinstance(model, gflow.TwoLayerReLU)
        for method in ("auto", "tsit5", "dop853", *(["bdf"] if smooth else [])):
            for dense in (False, True):
                gflow.flow(model, problem, start.tolist(), [0, 1, 2], method=method, dense=dense, rtol=1e-5)
        gflow.flow(
            model,
            problem,
            np.float32(start),
            np.arange(9)[1::3],
            rtol=np.float64(1e-6),
            atol=np.float64(1e-9),
        )
        gflow.flow(model, problem, np.asfortranarray(start), np.array([3.0, 2.0, 1.0])[::-1], rest=0.1)
        gflow.flow(model, problem, start, [1.0, np.inf], rtol=1e-6, max_steps=np.int64(2000))
        gflow.flow(model, labels, start, [2.0, 3.0], clock="loss", rtol=1e-6)
        gflow.descend(model, problem, start, 0.05, 9)
        gflow.descend(
            model, problem, start, np.full(9, 0.05), np.int64(9), optimizer="momentum", save_every=4
        )
        gflow.descend(
            model, problem, start, 0.01, 9, optimizer="adam", batch_size=np.int64(3), rng=1, replacement=True
        )
    gflow.flow(MODELS[1], problem, MODELS[1].init("gaussian", 1e-30, rng=3), 20.0, coords="log", rtol=1e-6)
    gflow.descend(MODELS[2], problem, MODELS[2].init("gaussian", 0.4, rng=3), 0.05, 9, kink=np.float64(0.5))
    steep = gflow.Problem.factorization(np.diag([1.0, 3000.0]))  # "auto" goes over to BDF
    made = gflow.flow(gflow.Symmetric(2, 2), steep, [0.1, 0.02, -0.03, 0.2], 30.0, rtol=1e-5)
    assert "bdf" in made.methods.name
    gflow.descend(ByColumns(3), problem, np.full(6, 0.3), 0.01, 9, batch_size=2, rng=1)
    gflow.flow(BowlByValue(np.asfortranarray([1, 2])), None, [1, 2], 1)
    continued(tmp_path)


def test_arguments_of_a_compiled_loop_are_of_one_set_of_types(monkeypatch, tmp_path):
    types, enter = {}, abi.call

    def checked(loop, *arguments):
        found = tuple(map(numba.typeof, arguments))
        assert types.setdefault(loop, found) == found
        return enter(loop, *arguments)

    monkeypatch.setattr(abi, "call", checked)
    of_all_kinds(tmp_path)
    assert {loop.py_func.__module__.split(".")[-1] for loop in types} == {
        "descent", "ensembles", "explicit", "lossclock", "piecewise", "stiff", "diagonal", "linear", "relu", "test_calls",
    }  # fmt: skip
    assert all(abi._ENTRIES[loop] is loop.overloads[found].entry_point for loop, found in types.items())
