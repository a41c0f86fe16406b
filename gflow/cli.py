"""The command ``gflow``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 1 if a claim got another verdict than it must, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="gflow", description="Exact gradient flow of neural networks, held against theory."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    job = commands.add_parser(
        "reproduce",
        help="check the claims of papers and draw their figures",
        description="Check the claims of papers and draw their figures. Without a name: the tour, a short run "
        "that shows every family of networks against its predictions.",
    )
    job.add_argument("names", nargs="*", metavar="NAME", help="papers; see --list")
    job.add_argument(
        "--out", type=Path, default=Path("gflow-reports"), help="folder to write to (%(default)s)"
    )
    job.add_argument("--quick", action="store_true", help="the small size of each paper")
    job.add_argument("--list", action="store_true", help="list the papers and stop")
    options = parser.parse_args(arguments)
    from gflow import papers

    unknown = [name for name in options.names if name not in papers.PAPERS]
    if unknown:
        parser.error(f"NAME must be among {', '.join(papers.PAPERS)}; got {', '.join(unknown)}")
    if options.list:
        for name in papers.PAPERS:
            about = (papers.paper(name).__doc__ or "").strip().split("\n\n")[0]
            print(f"{name:<17} {' '.join(about.split())}")
        return 0
    tour = not options.names
    size = "quick" if tour or options.quick else "full"
    return _reproduce(list(papers.TOUR if tour else options.names), size, options.out)


def _reproduce(names: list[str], size: str, out: Path) -> int:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"gflow: --out must name a folder that can be written to; {out}: {error.strerror}",
            file=sys.stderr,
        )
        return 2
    from rich.console import Console

    from gflow import papers, report
    from gflow._progress import Progress
    from gflow._run import versions

    console = Console()
    sections: list[report.Section] = []
    others = _prepare(names[1:])
    try:
        with Progress(True, "gflow reproduce", len(names)) as bar:
            for i, name in enumerate(names):

                def advance(fraction: float, note: str, done: int = i, paper: str = name) -> None:
                    bar.update(done + fraction, f"{paper}: {note}")

                if name in others:
                    others[name].wait()
                sections.append(papers.reproduce(name, out, size, advance))
    except KeyboardInterrupt:
        console.print("Interrupted: what was finished is kept.")
        return 130
    finally:
        for process in others.values():
            process.kill()
            process.wait()
        for section in sections:
            report.print_section(section, console)
        if sections:
            page = report.write_page(sections, out, versions())
            figures = sum(len(section.plates) for section in sections)
            console.print(
                f"{figures} figures (PDF and PNG) and a page with all of it: {page}", soft_wrap=True
            )
    return 1 if any(section.failures for section in sections) else 0


def _prepare(names: list[str]) -> dict[str, subprocess.Popen[bytes]]:
    """Compile what later papers need in processes of their own, into the cache, while the first one runs."""
    if (os.cpu_count() or 1) < 2:
        return {}
    code = "import sys; from gflow import papers; papers.paper(sys.argv[1]).prepare()"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    from gflow import papers

    return {
        name: subprocess.Popen([sys.executable, "-c", code, name], **quiet)
        for name in names
        if hasattr(papers.paper(name), "prepare")
    }


if __name__ == "__main__":
    sys.exit(main())
