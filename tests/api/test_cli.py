"""The command: what it prints, writes and answers."""

from __future__ import annotations

import pytest

from gflow import cli, papers
from gflow.report import Row, Section


def test_reproduce_writes_a_page_and_figures(tmp_path, capsys):
    assert cli.main(["reproduce", "saxe2013", "--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "holds" in printed and "index.html" in printed
    page = (tmp_path / "index.html").read_text()
    for name in ("tree", "depth"):
        for ending in ("pdf", "png"):
            assert (tmp_path / "saxe2013" / f"{name}.{ending}").stat().st_size > 0
            assert f"saxe2013/{name}.{ending}" in page
    assert "arXiv 1312.6120" in page and "numerical error" in page


def test_list_names_every_paper(capsys):
    assert cli.main(["reproduce", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in papers.PAPERS)


def test_an_unknown_paper_is_an_error_before_anything_runs(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["reproduce", "moon", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert f"NAME must be among {', '.join(papers.PAPERS)}; got moon" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_an_error(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert cli.main(["reproduce", "saxe2013", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "--out must name a folder" in capsys.readouterr().err


def test_an_unexpected_verdict_is_an_exit_code(monkeypatch, capsys, tmp_path):
    section = Section(
        "x", "Title", "Reference", "Text", [Row("q", "1", "2", "0", "violated", expected=False)]
    )
    monkeypatch.setattr(papers, "reproduce", lambda *arguments: section)
    assert cli.main(["reproduce", "digits", "--out", str(tmp_path)]) == 1
    assert "not the verdict" in capsys.readouterr().out


def test_an_interrupt_keeps_what_is_finished(monkeypatch, capsys, tmp_path):
    done = Section("x", "Finished title", "Reference", "Text", [Row("q", "1", "1", "0", "holds")])

    def reproduce(name, *arguments):
        if name == "kinks":
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(papers, "reproduce", reproduce)
    assert cli.main(["reproduce", "--out", str(tmp_path)]) == 130
    assert "Finished title" in capsys.readouterr().out
    assert "Finished title" in (tmp_path / "index.html").read_text()
