"""The arrows between the rooms of the package point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gflow

ROOT = Path(gflow.__file__).parent
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def imports(module):
    """Names of all that a file imports, wherever in it, but not for the type checker alone."""
    tree = ast.parse((ROOT / module).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def users(package):
    return {
        m for m in MODULES if any(name == package or name.startswith(package + ".") for name in imports(m))
    }


def inside(*places):
    return {m for m in MODULES if m.startswith(places)}


@pytest.mark.parametrize("module", sorted(inside("kernels/")))
def test_kernels_import_only_numpy_and_numba(module):
    allowed = (
        "numpy",
        "numba",
        "gflow.kernels",
        "__future__",
        "typing",
        "functools",
        "collections.abc",
        "hashlib",
        "math",
        "pathlib",
    )
    assert {name for name in imports(module) if not name.startswith(allowed)} == set()


def test_theory_and_trajectory_run_no_solver():
    kernels = tuple(f"gflow.kernels.{name}" for name in ("explicit", "descent", "ensembles"))
    for solver in ("gflow.integrate", "gflow.iterate", "gflow.ensembles", *kernels):
        assert not users(solver) & (
            inside("theory/") | {"trajectory.py", "observe.py", "problem.py", "objective.py"}
        )


def test_models_have_no_solver_and_theory_no_model_of_its_own():
    assert not users("gflow.integrate") & inside("models/", "kernels/")
    assert not users("gflow.theory") & (inside("models/", "kernels/") | {"integrate.py", "trajectory.py"})


def test_only_pictures_import_matplotlib():
    assert users("matplotlib") <= inside("plot.py", "report.py", "cli.py", "papers/")


def test_only_sweeps_import_what_runs_and_labels_them():
    for package in ("joblib", "xarray", "dask", "distributed"):
        readers = inside("papers/") if package == "xarray" else set()  # of what a sweep returns
        assert users(package) - readers <= inside("sweeps/")


def test_only_the_command_line_imports_the_papers():
    assert users("gflow.papers") - inside("papers/") <= {"cli.py", "__init__.py"}
