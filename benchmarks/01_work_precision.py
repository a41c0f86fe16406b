"""Work-precision diagrams: error against seconds for gflow and its peers, and the ratios at equal error.

    python benchmarks/01_work_precision.py [--quick] [--problems a,c] [--only DOP853] [--cap 120]

Everybody solves the same problem from the same start, with states at the same times; the error is the largest
relative one over those times, against a reference whose own error is stated.  A contestant that has not
finished by the cap is stopped and counts as the cap.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import peers
import problems
import race

QUICK = ("a", "e12")
QUICK_RTOLS = (1e-4, 1e-6, 1e-8)


def main() -> None:
    parser = common.parser(__doc__ or "")
    parser.add_argument("--problems", default="", help=f"comma-separated, of {', '.join(problems.TASKS)}")
    parser.add_argument("--only", default=None, help="contestants whose name holds this, and gflow")
    parser.add_argument("--cap", type=float, default=None, help="seconds, default 120 (--quick: 0.5)")
    parser.add_argument(
        "--heat", type=float, default=None,
        help="seconds of a peer for all tolerances on problems with kinks, before the final; default cap / 8",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=None, help="timing rounds, default 9 (--quick: 1)")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time, for a machine that is busy otherwise",
    )
    options = parser.parse_args()
    names = options.problems.split(",") if options.problems else QUICK if options.quick else problems.TASKS
    cap = options.cap or (0.5 if options.quick else 120.0)
    rounds = options.rounds or (1 if options.quick else 9)
    results: dict[str, Any] = common.read(options.out) if options.problems else {}
    for name in names:
        try:
            results[name] = _run(problems.TASKS[name](), options, cap, rounds)
        except ValueError as error:  # a loss that gflow does not offer on this network
            results[name] = {"skipped": str(error)}
            print(f"{name}: {error}")
        common.write(options.out, results, show=False)
    common.write(options.out, results, show=False)


def _run(task: problems.Task, options: Any, cap: float, rounds: int) -> dict[str, Any]:
    task.objective  # noqa: B018  does gflow take it at all?
    reference, uncertainty = _reference(task, options.out)
    print(f"{task.title}; P = {task.theta0.size}; reference exact to {uncertainty:.0e}", flush=True)
    only = options.only
    if options.quick:
        task = replace(task, rtols=tuple(r for r in task.rtols if r in QUICK_RTOLS))
        only = only or ("DOP853" if task.kinks else None)  # each one that is stopped costs a new process
    heat = (options.heat or cap / 8.0) if task.kinks and not options.quick else None
    curves, absent = race.race(
        task,
        peers.GROUPS,
        reference,
        cap,
        rounds,
        lambda line: print(line, flush=True),
        only,
        options.processor_time,
        heat,
    )
    ours = next(c for c in curves if c.name == "gflow")
    by_loss = next((c for c in curves if c.name == peers.BY_LOSS), None)
    theirs = [c for c in curves if c.group != "gflow"]
    table = {}
    for error in (e for e in task.errors if e > 3.0 * uncertainty):
        mine = ours.seconds_at(error)
        times = {c.name: c.seconds_at(error) for c in theirs}
        reached = {k: v for k, v in times.items() if v is not None}
        best = min(reached, key=reached.__getitem__, default=None)
        # one that was stopped, or that never becomes so exact, counts as the cap
        ratios = {k: (cap if v is None else v) / mine if mine else None for k, v in times.items()}
        given = [c.seconds_at(error) or max(p.seconds for p in c.points) for c in theirs]
        table[f"{error:.0e}"] = {
            "gflow_by_loss_s": by_loss.seconds_at(error) if by_loss else None,
            "gflow_s": mine, "gflow_processor_s": ours.seconds_at(error, "processor_seconds"), "best_peer": best, "best_peer_s": reached.get(best) if best else None,
            # where a peer that never becomes so exact counts only the seconds of its longest run
            "given_over_gflow": min(given) / mine if mine and given else None,
            "best_peer_over_gflow": None if mine is None else min(ratios.values(), default=None),
            "seconds": times, "over_gflow": ratios, "not_reached": [k for k, v in times.items() if v is None],
        }  # fmt: skip
        _say(error, table[f"{error:.0e}"])
    figure = common.work_precision(
        options.out / f"work_precision_{task.name}", task.title, curves, uncertainty, cap
    )
    for package, why in absent.items():
        print(f"  absent: {package}: {why}")
    return {
        "title": task.title, "parameters": task.theta0.size, "reference_error": uncertainty, "cap_s": cap, "heat_s": heat,
        "rounds": rounds, "processor_time": options.processor_time, "absent": absent, "at_equal_error": table, "figure": figure,
        "curves": [asdict(c) for c in curves],
    }  # fmt: skip


def _say(error: float, row: dict[str, Any]) -> None:
    if row["gflow_s"] is None:
        print(f"  at {error:.0e}: gflow does not reach it")
        return
    ranked = sorted(row["over_gflow"].items(), key=lambda item: item[1])
    text = ", ".join(f"{name} {ratio:.3g}" for name, ratio in ranked)
    print(f"  at {error:.0e}: gflow {row['gflow_s']:.3g} s; peers take times as long: {text}")


def _reference(task: problems.Task, folder: Path) -> tuple[np.ndarray, float]:
    """The reference, kept in the folder of results: that of the wide ReLU network takes many minutes."""
    arrays = (task.theta0, task.t, *task.constants.values())
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays))
    path = folder / f"reference_{task.name}_{digest.hexdigest()[:12]}.npz"
    if path.exists():
        with np.load(path) as kept:
            return kept["states"], float(kept["error"])
    states, error = task.reference(task)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(path, states=states, error=error)
    return states, error


if __name__ == "__main__":
    main()
