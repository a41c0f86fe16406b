"""Reports: what a paper's reproduction found, as a table in the terminal and a page with its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from gflow.claims import Observation, Verdict


@dataclass(frozen=True)
class Row:
    """One line of a table: a quantity, what theory says of it, what was measured, and the verdict.

    ``verdict`` is a verdict's status or ``"observation"``; ``expected`` whether it is what it must be (a
    negative control must not hold).
    """

    quantity: str
    predicted: str
    measured: str
    error: str
    verdict: str
    expected: bool = True


@dataclass(frozen=True)
class Plate:
    """A figure of a report: its PNG (with a PDF of the same name beside it) and a caption with its source."""

    path: Path
    caption: str


@dataclass
class Section:
    """What the reproduction of one paper found.

    Attributes
    ----------
    name, title, reference : str
        Command-line name; the paper's title; authors, year and arXiv id.
    text : str
        What was done, in a paragraph.
    rows : list of Row
    plates : list of Plate
    """

    name: str
    title: str
    reference: str
    text: str
    rows: list[Row] = field(default_factory=list)
    plates: list[Plate] = field(default_factory=list)

    @property
    def failures(self) -> list[Row]:
        """Rows whose verdict is not what it must be."""
        return [row for row in self.rows if not row.expected]


def verdict_rows(verdict: Verdict, expected: str = "holds") -> list[Row]:
    """Rows for a verdict that must have the ``expected`` status: its findings, or the hypotheses that fail."""
    name, right = verdict.claim.name, verdict.status == expected
    if verdict.status == "inapplicable":
        return [
            Row(f"{name}: {h.name}", f"≤ {h.tolerance:.1e}", f"{h.defect:.2e}", "—", verdict.status, right)
            for h in verdict.hypotheses
            if not h.holds
        ]
    rows = []
    for f in verdict.findings:
        c = f.conclusion
        if c.predicted is None:
            predicted, measured = f"≤ {c.bound:.1e}", f"{c.value:.2e}"
        else:
            predicted, measured = f"{c.predicted:.8g}", f"{c.value:.8g}"
        rows.append(Row(f"{name}: {c.name}", predicted, measured, f"{f.uncertainty:.1e}", f.status, right))
    return rows or [Row(name, "—", "—", "—", verdict.status, right)]


def observation_row(observation: Observation) -> Row:
    """A row for an empirical statement."""
    note = f" ({observation.note})" if observation.note else ""
    return Row(
        observation.name + note, "—", f"{observation.value:.6g}", f"{observation.error:.1e}", "observation"
    )


def print_section(section: Section, console: Any) -> None:
    """Write a section's table to a rich console."""
    from rich.table import Table
    from rich.text import Text

    colors = {"holds": "green", "inapplicable": "yellow", "violated": "yellow", "inconclusive": "magenta"}
    table = Table(title=f"{section.title}\n{section.reference}", title_justify="left")
    table.add_column("quantity", overflow="fold")
    for heading in ("predicted", "measured", "numerical\nerror", "verdict"):
        table.add_column(heading, no_wrap=True)
    for row in section.rows:
        color = colors.get(row.verdict, "cyan") if row.expected else "bold red"
        verdict = row.verdict if row.expected else f"{row.verdict} (!)"
        cells = (row.quantity, row.predicted, row.measured, row.error)
        table.add_row(*map(Text, cells), Text(verdict, style=color))
    console.print(table)
    if section.failures:
        console.print(Text("(!) not the verdict that this claim or control must get", style="bold red"))


def write_page(sections: Sequence[Section], out: Path, versions: dict[str, str]) -> Path:
    """Write ``index.html`` with all sections into the folder that holds their figures; return its path."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string((files("gflow") / "report.html").read_text("utf-8"))
    page = out / "index.html"
    plates = {
        plate.path: (
            plate.path.relative_to(out).as_posix(),
            plate.path.with_suffix(".pdf").relative_to(out).as_posix(),
        )
        for section in sections
        for plate in section.plates
    }
    page.write_text(template.render(sections=sections, plates=plates, versions=versions), "utf-8")
    return page
