"""Machine code from disk: served in a second process, never stale, and not touched by an import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gflow

PACKAGE = Path(gflow.__file__).parent
RUN = """
import json, gflow
from gflow.kernels import abi, descent, ensembles, explicit, {family} as family
model, problem = {network}
flow = gflow.flow(model, problem, [0.1, 0.1], [0.3, 1.0], dense=True)
steps = gflow.descend(model, problem, [0.1, 0.1], 0.1, 5)
kernels = explicit.advance, descent.advance, family.gradient
if {everything}:
    flow.loss, flow.sensitivity()
    kernels += abi.losses, family.loss, family.hvp
    gflow.ensemble(model, problem, [[0.1, 0.1]], 1.0)
    gflow.ensemble(model, problem, [[0.1, 0.1]], step_size=0.1, n_steps=3)
    kernels += ensembles.flows, ensembles.descents, ensembles.default_atols
print(json.dumps({{
    "flow": flow.end.tolist(), "descent": steps.end.tolist(), "steps": flow.counts["accepted"],
    "hits": [sum(k.stats.cache_hits.values()) for k in kernels],
    "misses": [sum(k.stats.cache_misses.values()) for k in kernels],
}}))
"""


NETWORKS = {
    "linear": "gflow.DeepLinear((1, 1, 1)), gflow.Problem.factorization([[2.0]])",
    "diagonal": "gflow.Diagonal(1), gflow.Problem([[1.0]], [2.0])",
}


def python(code, package=PACKAGE):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    environment["PYTHONPATH"] = str(package.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=package.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(package=PACKAGE, family="linear", everything=False):
    code = RUN.format(family=family, network=NETWORKS[family], everything=everything)
    return json.loads(python(code, package))


def test_importing_loads_neither_compiler_nor_graphics():
    out = python(
        "import sys, gflow; print([m for m in ('numba', 'matplotlib', 'scipy', 'xarray', 'joblib', 'dask') if m in sys.modules])"
    )
    assert out.strip() == "[]"


def test_a_second_process_compiles_nothing():
    run(everything=True)
    second = run(everything=True)
    assert second["misses"] == [0] * 9
    assert min(second["hits"]) >= 1


@pytest.mark.slow
def test_an_edited_kernel_gives_new_numbers(tmp_path):
    """On diagonal networks, whose kernels compile soonest."""
    package = tmp_path / "gflow"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    fresh = run(package, "diagonal")
    cached = run(package, "diagonal")
    here = run(family="diagonal")
    assert min(fresh["misses"]) >= 1 and cached["misses"] == [0] * 3
    assert fresh["flow"] == cached["flow"] == here["flow"] and fresh["descent"] == here["descent"]

    edit(package / "kernels" / "diagonal.py", "2.0 * factor", "4.0 * factor")
    doubled = run(package, "diagonal")
    assert doubled["flow"] != fresh["flow"] and doubled["descent"] != fresh["descent"]

    edit(
        package / "kernels" / "explicit.py", "_SAFETY, _SHRINK, _GROW = 0.9", "_SAFETY, _SHRINK, _GROW = 0.5"
    )
    careful = run(package, "diagonal")
    assert careful["steps"] > doubled["steps"]
    assert careful["descent"] == doubled["descent"]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
