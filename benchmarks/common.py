"""What all benchmarks share: interleaved timing, the machine, JSON out."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def parser(description: str) -> argparse.ArgumentParser:
    """Command-line options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a short run, for continuous integration")
    made.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON and figures"
    )
    return made


def options(description: str) -> argparse.Namespace:
    """The options of a benchmark that has no more of them."""
    return parser(description).parse_args()


def interleaved(
    jobs: dict[str, Callable[[], Any]], rounds: int, sample_seconds: float = 0.02
) -> dict[str, list[float]]:
    """Seconds per call of each job, in samples taken in turn (A B C A B C ...).

    A slow moment of the machine so meets all jobs alike.  A sample repeats its job, back to back, for
    about ``sample_seconds``; with 0 it is one isolated call, which pays for caches that the jobs before
    it have emptied.
    """
    repeats = {}
    for name, job in jobs.items():
        job()  # compile and warm up
        start = time.perf_counter()
        job()
        repeats[name] = max(1, round(sample_seconds / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                job()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def machine() -> dict[str, Any]:
    """Versions and machine, for the record."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    names = (
        "gradient-flow", "numpy", "scipy", "numba", "numbalsoda", "jax", "diffrax", "torch", "torchdiffeq",
        "scikit-sundae", "solve-nivp",
    )  # fmt: skip
    return {
        "python": platform.python_version(), "processor": _processor(), "cores": os.cpu_count(),
        **{name: installed(name) for name in names},
    }  # fmt: skip


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def _path(folder: Path) -> Path:
    return folder / f"{Path(sys.argv[0]).stem}.json"


def read(folder: Path) -> dict[str, Any]:
    """What this benchmark wrote before, to be added to; empty if nothing."""
    try:
        return json.loads(_path(folder).read_text())
    except FileNotFoundError:
        return {}


def write(folder: Path, results: dict[str, Any], show: bool = True) -> None:
    """Write results as JSON under the benchmark's own name, and print them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**results, "machine": machine()}, indent=2, default=float)
    _path(folder).write_text(text + "\n")
    if show:
        print(text)


def work_precision(path: Path, title: str, curves: list[Any], uncertainty: float, cap: float) -> str:
    """Draw error against seconds for all curves, gflow's in front; the name of the file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(c.group for c in curves))
    styles = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
    fig, ax = pyplot.subplots(figsize=(8.5, 5.2), layout="constrained")
    for c in curves:
        kept = [p for p in c.points if not p.capped and 0 < p.error < 1e3]
        if not kept:
            continue
        nth = [other.name for other in curves if other.group == c.group].index(c.name)
        ours = c.group == "gflow"
        ax.plot(
            [p.error for p in kept], [p.seconds for p in kept], label=c.name,
            marker="o" if ours else ".x+"[nth // len(styles) % 3],
            color="black" if ours else f"C{groups.index(c.group) - 1}", linestyle=styles[nth % len(styles)],
            linewidth=2.0 if ours and nth == 0 else 0.9, markersize=4, alpha=1.0 if ours else 0.8,
        )  # fmt: skip
    ax.axvspan(uncertainty / 10, uncertainty, color="0.9", label="the reference's own error")
    if any(p.capped for c in curves for p in c.points):
        ax.axhline(cap, color="0.6", linewidth=0.8, label="cap")
    ax.set(xscale="log", yscale="log", xlabel="largest relative error at the saved times", ylabel="seconds")
    ax.set_title(title, fontsize=10)
    ax.invert_xaxis()
    ax.legend(fontsize=6, ncols=1, loc="center left", bbox_to_anchor=(1.01, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path.with_suffix(".png"), dpi=90)
    pyplot.close(fig)
    return path.with_suffix(".png").name
