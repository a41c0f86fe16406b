"""Papers, one file each: their set-ups, claims and figures; ``gflow reproduce NAME`` runs one.

Every file offers ``claims(size)``, pairs of a claim and the verdict that it must get, and
``reproduce(out, size, advance)``, which checks them, draws the figures and returns a report section.  One that
needs kernels of its own may offer ``prepare()``, which compiles them while another file's are at work.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gflow._check import one_of
from gflow.claims import Claim, check
from gflow.report import Row, Section, verdict_rows

#: Names on the command line, in the order of the README.
PAPERS = (
    "digits",
    "kinks",
    "saxe2013",
    "braun2022",
    "chou2020",
    "huh2021",
    "woodworth2020",
    "pesme2021",
    "pesme2023",
    "even2023",
    "boursier2024",
    "boursier2024early",
    "sarussi2021",
)
#: What ``gflow reproduce`` runs without a name, in its quick size.
TOUR = ("digits", "saxe2013", "kinks")
SIZES = ("quick", "full")

Advance = Callable[[float, str], None]


def paper(name: str) -> Any:
    """The module of a paper."""
    return importlib.import_module(f"gflow.papers.{one_of('name', name, PAPERS)}")


def unbroken(run: Any) -> Any:
    """A trajectory or an ensemble as it is; KeyboardInterrupt if Ctrl-C has ended it, so that the paper ends too."""
    if "interrupted" in (run.codes if hasattr(run, "codes") else (run.outcome.code,)):
        raise KeyboardInterrupt
    return run


def settle(
    section: Section,
    listed: list[tuple[Claim, str]],
    advance: Advance,
    part: float,
    rtol: float = 1e-9,
    store: Path | None = None,
) -> None:
    """Check claims, each with the verdict that it must get, into the rows of a section; ``part`` of its progress.

    With a folder ``store``, what the same code has settled before is taken from there.
    """
    for i, (claim, expected) in enumerate(listed):
        advance(part * i / len(listed), claim.name)
        section.rows += _rows(claim, expected, rtol, store)


def _rows(claim: Claim, expected: str, rtol: float, store: Path | None) -> list[Row]:
    """Rows of a claim's verdict.  One that is not as it must be, for instance of a run cut short, is not kept."""
    if store is None:
        return verdict_rows(check(claim, rtol=rtol), expected)
    from gflow._key import Unkeyable, key_of
    from gflow.sweeps.store import open_store

    said = {"name": claim.name, "statement": claim.statement, "expected": expected, "rtol": rtol}
    try:
        key, _ = key_of(claim.run, said)
    except Unkeyable:  # gflow's own source has been edited since it was imported
        return _rows(claim, expected, rtol, None)
    kept = open_store(store, key, {"function": claim.name})
    data = kept.get("rows")
    if data is None:
        verdict = check(claim, rtol=rtol)
        data = pickle.dumps(verdict_rows(verdict, expected))
        if verdict.status == expected:
            kept.put("rows", data)
    found: list[Row] = pickle.loads(data)
    return found


def reproduce(name: str, out: str | Path, size: str = "full", advance: Advance | None = None) -> Section:
    """Check a paper's claims and draw its figures into the folder ``out / name``.

    Parameters
    ----------
    name : str
        One of :data:`PAPERS`.
    out : path
        Folder; made if need be.
    size : {"quick", "full"}
    advance : callable, optional
        Called with the fraction done and a note, for a progress bar.

    Returns
    -------
    gflow.report.Section
        Table rows and figures.
    """
    one_of("size", size, SIZES)
    folder = Path(out) / paper(name).__name__.rsplit(".", 1)[-1]
    folder.mkdir(parents=True, exist_ok=True)
    return paper(name).reproduce(folder, size, advance or (lambda fraction, note: None))
