"""Write the tables of a run, and its figures, into benchmarks/README.md between its markers.

python benchmarks/tables.py [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from race import TARGET

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
_LARGEST_FIGURE = 200_000


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale or unit == "µs":
            return f"{value / scale:.3g} {unit}"
    raise AssertionError


def work_precision(results: dict[str, Any], folder: Path) -> list[str]:
    lines = []
    for name, found in results.items():
        if name == "machine":
            continue
        if "skipped" in found:
            lines += [f"### {name}: not run", "", f"{found['skipped']}.", ""]
            continue
        lines += [f"### {found['title']}", ""]
        clock = "processor time" if found["processor_time"] else "wall time"
        lines += [
            f"P = {found['parameters']}; reference exact to {found['reference_error']:.0e}; cap {found['cap_s']:g} s; "
            f"{found['rounds']} rounds, {clock}. Seconds to an error, and in brackets as multiples of gflow's; "
            f"“cap”: not reached by the cap, counted as the cap.",
            "",
        ]
        if found.get("heat_s"):
            lines += [
                f"Each peer first had {found['heat_s']:g} s for all its tolerances; then those whose points led to an error of "
                f"{TARGET:.0e} soonest had the cap, at the tolerance that should reach it; “out”: not among these, counted as the cap. "
                "Last column: the most exact run.",
                "",
            ]
        errors = found["at_equal_error"]
        curves = {c["name"]: c["points"] for c in found["curves"]}
        peers = sorted(
            next(iter(errors.values()))["over_gflow"] if errors else [],
            key=lambda k: (
                [row["over_gflow"][k] or 0.0 for row in errors.values()],
                _best_error(curves[k]),
                k,
            ),
        )
        rows: list[list[str]] = [
            ["**gflow**", *(f"**{seconds(row['gflow_s'])}**" for row in errors.values())]
        ]
        if any(row.get("gflow_by_loss_s") for row in errors.values()):
            cells = (_cell_by_loss(row) for row in errors.values())
            rows.append(["gflow clock='loss'", *cells])
        for peer in peers:
            had_cap = not found.get("heat_s") or any(p["seconds"] >= found["cap_s"] for p in curves[peer])
            cells = (_cell(row, peer, "cap" if had_cap else "out") for row in errors.values())
            rows.append([peer, *cells])
        head = ["", *(f"error {e}" for e in errors)]
        if found.get("heat_s"):
            head.append("most exact")
            for row, name in zip(rows, ["gflow", *peers], strict=True):
                row.append(_most_exact(curves[name]))
        lines += table(head, rows)
        given = [row.get("given_over_gflow") for row in errors.values()]
        if found.get("heat_s") and all(given):
            lines += [
                "If those who did not reach an error count only the seconds of their longest run, the best is "
                f"{', '.join(f'{g:.3g}' for g in given)} times as long as gflow.",
                "",
            ]
        spent = [row.get("gflow_processor_s") for row in errors.values()]
        if any(spent):
            lines += [f"gflow's processor time: {', '.join(map(seconds, spent))}.", ""]
        lost = [
            f"{peer} at {e} ({ratio:.2g})"
            for e, row in errors.items()
            for peer, ratio in row["over_gflow"].items()
            if ratio is not None and ratio < 1.0
        ] + [
            f"every peer at {e}, which it does not reach"
            for e, row in errors.items()
            if row["gflow_s"] is None
        ]
        if lost:
            lines += [f"gflow loses to: {', '.join(lost)}.", ""]
        lost = [
            f"{peer} at {e} ({taken / row['gflow_by_loss_s']:.2g})"
            for e, row in errors.items()
            for peer, taken in row["seconds"].items()
            if row.get("gflow_by_loss_s") and taken is not None and taken < row["gflow_by_loss_s"]
        ]
        if any(row.get("gflow_by_loss_s") for row in errors.values()):
            lines += [f"By the clock of the loss gflow loses to: {', '.join(lost) or 'none'}.", ""]
        if found["absent"]:
            lines += [f"Absent: {', '.join(found['absent'])}.", ""]
        lines += _figure(folder, found["figure"], found["title"])
    return lines


def _best_error(points: list[dict[str, Any]]) -> float:
    return min((p["error"] for p in points if not p["capped"]), default=float("inf"))


def _most_exact(points: list[dict[str, Any]]) -> str:
    if _best_error(points) < 1.0:
        best = min((p for p in points if not p["capped"]), key=lambda p: p["error"])
        return f"{best['error']:.0e} in {seconds(best['seconds'])}"
    if any(p["capped"] for p in points):
        return f"{points[-1]['note']} at rtol {points[-1]['rtol']:.0e}"
    return "gave up"


def _cell_by_loss(row: dict[str, Any]) -> str:
    taken, ours = row.get("gflow_by_loss_s"), row["gflow_s"]
    return "–" if taken is None else f"{seconds(taken)} ({taken / ours:.3g})" if ours else seconds(taken)


def _cell(row: dict[str, Any], peer: str, lost: str) -> str:
    ratio = row["over_gflow"][peer]
    if peer in row["not_reached"]:
        return lost if ratio is None else f"{lost} ({ratio:.3g})"
    return seconds(row["seconds"][peer]) + ("" if ratio is None else f" ({ratio:.3g})")


def _figure(folder: Path, name: str, title: str) -> list[str]:
    source = folder / name
    if not source.exists() or source.stat().st_size > _LARGEST_FIGURE:
        return []
    (HERE / "figures").mkdir(exist_ok=True)
    shutil.copyfile(source, HERE / "figures" / name)
    return [f"![{title}](figures/{name})", ""]


def start_up(results: dict[str, Any], folder: Path) -> list[str]:
    names = [k for k in results["warm_cache"] if k.endswith("_s")]
    rows = [
        [k[:-2].replace("_", " "), *(f"{results[c][k]:.3g} s" for c in ("warm_cache", "cold_cache"))]
        for k in names
    ]
    later = results.get("later_calls")  # which older results lack
    said = "A later call on problem (a): {whole_us:.3g} µs; one of a single step: {one_step_us:.3g} µs."
    return [
        "## 02 Start-up",
        "",
        "Fresh processes, in turn.",
        "",
        *table(["", "warm cache", "cold cache"], rows),
        *([said.format(**later), ""] if later else []),
    ]


def ensemble(results: dict[str, Any], folder: Path) -> list[str]:
    wall, processor = results["at_error"]["seconds"], results["at_error"]["processor_seconds"]
    ours = {e: row.get("gflow.ensemble, all cores") for e, row in wall.items()}

    def cell(error: str, name: str) -> str:
        taken = wall[error].get(name)
        ratio = f" ({taken / ours[error]:.3g})" if taken and ours[error] else ""
        return f"{seconds(taken)}{ratio}, {seconds(processor[error].get(name))}"

    names = list(next(iter(wall.values())))
    lines = [
        f"## 03 Ensemble: {results['runs']} scalar networks",
        "",
        f"Wall time, in brackets as a multiple of that of gflow on all cores, and processor time; medians over rounds: {results['rounds']}.",
        "",
        *table(
            ["", *(f"error {e}" for e in wall)], [[name, *(cell(e, name) for e in wall)] for name in names]
        ),
    ]
    if results["absent"]:
        lines += [f"Absent: {', '.join(results['absent'])}.", ""]
    return lines + _figure(folder, results["figure"], "Ensemble of scalar networks")


def growth(results: dict[str, Any], folder: Path) -> list[str]:
    rows = [
        [
            name, ", ".join(map(str, r["sizes"])),
            *(f"{r[k]:.2f}" if k in r else "–" for k in ("exponent_gradient", "exponent_solve", "exponent_count")),
        ]
        for name, r in results.items()
        if isinstance(r, dict) and "sizes" in r
    ]  # fmt: skip
    head = ["against", "sizes", "exponent, gradient", "exponent, step", "exponent, operation count"]
    return ["## 04 Growth", "", "Fitted over the larger half of the sizes.", "", *table(head, rows)]


def kernels(results: dict[str, Any], folder: Path) -> list[str]:
    wide = [
        [r["width"], r["kind"], r["products"], f"{r['gradient_us']:.0f} µs", f"{r['products_us']:.0f} µs", f"{r['ratio']:.2f}"]
        for r in results["wide"]
    ]  # fmt: skip
    small = [
        [r["width"], f"{r['rtol']:g}", r["gradients"], f"{r['solve_ms']:.3g} ms", f"{r['bare_ms']:.3g} ms", f"{r['ratio']:.2f}"]
        for r in results["small"]
    ]  # fmt: skip
    return [
        "## 05 Kernels", "", f"Depth {results['depth']}, square layers.", "",
        *table(["width", "problem", "products", "gradient", "bare products", "ratio"], wide),
        *table(["width", "rtol", "gradients", "whole solve", "count × gradient", "ratio"], small),
    ]  # fmt: skip


SECTIONS = {
    "01_work_precision": work_precision, "02_start_up": start_up, "03_ensemble": ensemble,
    "04_growth": growth, "05_kernels": kernels,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=HERE / "results", help="where the benchmarks wrote their JSON"
    )
    folder = parser.parse_args().out
    lines: list[str] = []
    for stem, section in SECTIONS.items():
        path = folder / f"{stem}.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        if stem == "01_work_precision":
            machine = {k: v for k, v in results["machine"].items() if v is not None}
            lines += ["Machine and versions: " + ", ".join(f"{k} {v}" for k, v in machine.items()) + ".", ""]
            lines += ["## 01 Work-precision", ""]
        lines += section(results, folder)
    readme = HERE / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text("\n".join([before + BEGIN, "", *lines, END]) + after)


if __name__ == "__main__":
    main()
