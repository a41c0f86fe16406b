"""The runs behind the threshold's figure: what a cell says, how runs are judged, and that finished ones are kept."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from gflow import Problem, TwoLayerReLU, theory
from gflow.claims import Claim, check
from gflow.objective import Objective
from gflow.papers import boursier2024 as paper
from gflow.papers import boursier2024early as early
from gflow.papers import falling


def test_a_cell_beyond_the_threshold_ends_in_the_two_fits():
    found = paper.cell(5, 100, 0)
    assert paper.outcome(found) == "two fits" and found["finished"] == 1.0
    assert abs(found["train"] - found["fits_train"]) < 2e-10  # 2 L
    assert abs(found["test"] / found["fits_test"] - 1) < 0.02  # sampled, and in closed form
    assert found["closest"] < 1e-4 and found["closest_at"] <= found["reached"]


def test_a_run_that_is_given_up_is_undecided_unless_it_interpolates_already():
    found = paper.cell(5, 20, 0, max_steps=300)
    assert paper.outcome(found) == "undecided" and found["finished"] == 0.0
    assert paper.outcome({**found, "train": 1e-9 * paper.SIGMA**2}) == "interpolates"
    assert paper.outcome({**found, "finished": 1.0}) == "between"
    at_fits = {**found, "finished": 1.0, "train": found["fits_train"]}
    assert paper.outcome(at_fits) == "two fits"
    assert paper.outcome({**at_fits, "saddle": 1.0}) == "between"
    assert paper.outcome({**at_fits, "train": found["fits_train"] + 4e-10}) == "between"  # 2 L: 2e-10 away


def test_without_samples_enough_in_a_half_there_are_no_fits():
    found = paper.cell(5, 7, 0, max_steps=200)
    assert np.isnan([found[name] for name in ("fits_train", "fits_test", "closest", "misaligned")]).all()
    assert np.isfinite([found[name] for name in ("train", "test", "reached")]).all()


def fake_cell(log, broken):
    """A cell that notes its runs in a file, and fails for the seed 2 as long as another file is there."""

    def cell(d, n, seed, max_steps, rtol):
        import os

        with open(log, "a") as file:
            file.write(f"{seed}\n")
        if seed == 2 and os.path.exists(broken):
            raise RuntimeError("broken")
        return dict.fromkeys(paper.MEASURED, float(seed)) | {"fits_train": float("nan")}

    return cell


def test_finished_cells_are_kept_and_failed_ones_seen_and_run_again(tmp_path, monkeypatch):
    """As after an interrupt: the next call goes on where the last one was; other settings start afresh."""
    log, broken, fractions = tmp_path / "log", tmp_path / "broken", []
    listed = [(5, n, seed) for n in (20, 30) for seed in range(3)]
    monkeypatch.setattr(paper, "grid", lambda size: listed)
    monkeypatch.setattr(paper, "cell", fake_cell(str(log), str(broken)))

    def cells():
        log.write_text("")
        found = paper.cells(tmp_path, "quick", lambda fraction, note: fractions.append(fraction), jobs=1)
        return found, [int(line) for line in log.read_text().split()]

    broken.touch()
    with pytest.warns(UserWarning, match="RuntimeError: broken"):
        found, ran = cells()
    assert ran == [0, 1, 2] * 2 and list(found) == listed and fractions == [0.0, 50 / 110]
    assert paper.outcome(found[5, 20, 2]) == "failed" and np.isnan(found[5, 20, 2]["train"])
    table = {one.name: one for one in paper.shares(found)}
    assert "1 failed" in table["d = 5, n = 30: share of runs that end in the two fits"].note
    broken.unlink()
    found, ran = cells()
    assert ran == [2, 2] and [found[key]["train"] for key in listed] == [0.0, 1.0, 2.0] * 2
    assert np.isnan(found[listed[0]]["fits_train"]) and found[listed[2]]["error"] == ""
    assert cells()[1] == []
    monkeypatch.setattr(paper, "STEPS", 7)
    assert cells()[1] == [0, 1, 2] * 2


def test_an_interrupt_ends_the_paper(tmp_path, monkeypatch):
    def cell(d, n, seed, max_steps, rtol):
        raise KeyboardInterrupt

    monkeypatch.setattr(paper, "cell", cell)
    with pytest.warns(UserWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):
        paper.cells(tmp_path, "quick", lambda fraction, note: None, jobs=1)


def test_where_interpolation_stops():
    def row(train, **more):
        made = dict.fromkeys(paper.MEASURED, 0.0) | {"train": train, "fits_train": 0.08, "finished": 1.0}
        return made | {"error": ""} | more

    found = {
        (5, 10, 0): row(0.0), (5, 20, 0): row(0.0), (5, 20, 1): row(0.08), (5, 40, 0): row(0.08),
        (5, 40, 1): row(0.03, finished=0.0), (5, 80, 0): row(0.08), (5, 99, 0): row(0.08),
    }  # fmt: skip
    largest, last, first = paper.ends_of_range(found, 5)
    assert largest.value == 0.0 and "the 4 runs" in largest.name
    assert (last.value, last.error) == (20, 20) and "unknown of 1 runs" in last.note
    assert (first.value, first.error) == (80, 40)
    (none,) = paper.ends_of_range({(5, 10, 0): row(0.04)}, 5)
    assert np.isnan(none.value)


def test_a_fall_is_a_number_that_converges():
    """From one neuron, L = ½ (1 − a²)² falls below ½ (1 − b)² when a² = b, on the logistic curve."""
    objective = Objective(TwoLayerReLU(1, 1), Problem([[1.0]], [1.0]))
    start, b = np.array([1e-3, 1e-3]), 0.6
    exact = 0.5 * np.log(b / (1 - b) * (1 - 1e-6) / 1e-6)
    for rtol, allowed in ((1e-11, 1e-4), (1e-2, 0.2)):
        run, inverse = falling.run_or_fall(objective, start, 0.5 * (1 - b) ** 2, rtol)
        assert run.outcome.code == "stopped" and abs(inverse * exact - 1) < allowed
    run, inverse = falling.run_or_fall(objective, start, -1.0, 1e-9)
    assert inverse == 0.0 and run.outcome.code == "finished"
    with pytest.raises(ValueError, match="theta0 must have a loss above"):
        falling.run_or_fall(objective, start, 1.0, 1e-9)


@pytest.mark.parametrize("times", [(3.0, 4.0, 3.3), (3.0, 0.0, 3.0)])
def test_runs_that_fall_at_different_times_decide_nothing(times, monkeypatch):
    """Two coarse runs may both go astray: that is no violation unless they agree when."""
    setup = paper.SetUp(5, 60, 0, 1)
    monkeypatch.setattr(paper, "hypotheses_of", lambda setup: ())
    run, calls = setup.flow(1e-6, t=[1.0]), iter(times)
    monkeypatch.setattr(paper, "run_or_fall", lambda *arguments: (run, 1 / t if (t := next(calls)) else 0.0))
    claim = Claim("", "", "", partial(paper.ends_in_two_fits, setup))
    verdict = check(claim, rtol=1e-2)
    assert verdict.status == "inconclusive" and len(verdict.rtols) == 3


def test_a_plateau_at_the_two_fits_is_left():
    """n = 20, d = 5: one neuron starts late, comes to the fits small, and grows at the rate that they give it."""
    setup, run, history = paper.plateau(paper.LEAVES, rtol=1e-8)
    first = history[:, 2].argmin()
    assert history[first, 2] < 0.03 and abs(history[first, 1] / setup.fits.loss - 1) < 0.02
    assert run.limit.kind == "minimum" and run.loss[-1] < 0.5 * setup.fits.loss
    at = history[first, 0]
    pair = setup.flow(1e-9, t=[at, at + 5.0]).theta
    rates = theory.threshold.escape_rates(setup.model, setup.problem, pair[0], setup.fits)
    a = setup.model.outer_layer(pair)[:, 0]
    growing = np.flatnonzero(rates > 0.01)
    assert growing.size == 1
    measured = np.log(a[1, growing] / a[0, growing]) / 5.0
    np.testing.assert_allclose(measured, rates[growing], rtol=0.05)
    stays, end, _ = paper.plateau(paper.STAYS, rtol=1e-8)
    assert abs(end.loss[-1] - stays.fits.loss) < 1e-10 and end.limit.kind == "minimum"


@pytest.mark.parametrize(("data", "least"), [("assumption 3", 0.05), ("authors", np.inf), ("obtuse", np.inf)])
def test_the_least_eta_of_assumption_3(data, least):
    x, y = early.POINTS[data]
    assert early.least_eta(np.asarray(x), np.asarray(y)) == pytest.approx(least)


def test_angles_at_tau_fall_with_the_power_of_the_scale():
    """1 − cos ~ λ^(2 ε ‖D‖ / ‖D_max‖) in cones; to rounding on kinks, once they are met."""
    scales, found, which = early.angles("quick")
    land = early.SetUp("gaussian", 1e-4).landscape
    vectors = land.attractors(1) + land.attractors(-1)
    for k in np.unique(which[which >= 0]):
        largest = found[:, which == k].max(axis=1)
        if vectors[k].kinks:
            assert largest[-1] < 1e-11
            continue
        slope = np.log(largest[-1] / largest[-2]) / np.log(scales[-1] / scales[-2])
        expected = early.EPSILON * np.linalg.norm(vectors[k].vector) / land.largest
        assert abs(slope - expected) < 1e-3
