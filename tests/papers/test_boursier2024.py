"""The runs behind the threshold's figure: what a cell says, how runs are judged, and that finished ones are kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gflow import theory
from gflow.papers import boursier2024 as paper
from gflow.papers import boursier2024early as early


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


def test_without_samples_enough_in_a_half_there_are_no_fits():
    found = paper.cell(5, 7, 0, max_steps=200)
    assert np.isnan([found[name] for name in ("fits_train", "fits_test", "closest", "misaligned")]).all()
    assert np.isfinite([found[name] for name in ("train", "test", "reached")]).all()


def test_finished_cells_are_kept_and_others_run_again(tmp_path, monkeypatch):
    """As after an interrupt: the next call goes on where the last one was; other settings start afresh."""
    listed = [(5, 20, seed) for seed in range(3)]
    monkeypatch.setattr(paper, "grid", lambda size: listed)
    ran = []

    def cell(d, n, seed):
        if seed == 2 and len(ran) == 2:
            ran.append("interrupt")
            raise KeyboardInterrupt
        ran.append(seed)
        return {"train": float(seed), "fits_train": float("nan")}

    monkeypatch.setattr(paper, "cell", cell)
    with pytest.raises(KeyboardInterrupt):
        paper.cells(tmp_path, "quick", lambda fraction, note: None)
    fractions = []
    found = paper.cells(tmp_path, "quick", lambda fraction, note: fractions.append(fraction))
    assert ran == [0, 1, "interrupt", 2]
    assert [found[key]["train"] for key in listed] == [0.0, 1.0, 2.0] and fractions[-1] == 1.0
    assert np.isnan(found[listed[0]]["fits_train"])
    monkeypatch.setattr(paper, "STEPS", 7)
    paper.cells(tmp_path, "quick", lambda fraction, note: None)
    assert ran[4:] == [0, 1, 2]
    kept = json.loads((tmp_path / "cells" / "d5-n20-seed1.json").read_text())
    assert kept["key"]["max_steps"] == 7 and "gflow" in kept["key"]


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
