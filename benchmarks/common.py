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


def options(description: str) -> argparse.Namespace:
    """Command-line options of a benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few repetitions, for continuous integration")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON"
    )
    return parser.parse_args()


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

    names = ("gradient-flow", "numpy", "scipy", "numba")
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


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write results as JSON under the benchmark's own name, and print them."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), **results}
    path = folder / f"{Path(sys.argv[0]).stem}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
