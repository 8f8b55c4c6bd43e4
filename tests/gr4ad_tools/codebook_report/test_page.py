"""`gr4ad codebook report` on a small simulated market."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from gr4ad_core.sid.codebook import CodebookConfig, fit_codebook
from gr4ad_core.sid.cooccurrence_head import CooccurrenceHead
from gr4ad_tools.cli import app
from gr4ad_tools.codebook_fit import FitOptions, fit_codebook_from_folder
from gr4ad_tools.codebook_report.page import recall_figures
from gr4ad_tools.simulate import Market
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    Market("tiny", 1).write_folder(folder / "market")
    fit_codebook_from_folder(folder / "market", str(folder / "artifacts"), "tiny", FitOptions(holdout_events=2))
    return folder


def test_the_page_shows_figures_drawings_and_neighbours(folder: Path) -> None:
    out = folder / "out"
    arguments = ["codebook", "report", str(folder / "market"), "--artifacts", str(folder / "artifacts"), "--id", "tiny"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads((out / "summary.json").read_text())["figures"]
    assert (figures["cpr"]["value"], figures["col"]["value"]) == (1.0, 0.0)
    assert (
        0.0 < figures["reconstruction_error_level_2"]["value"] < figures["reconstruction_error_level_1"]["value"] < 1.0
    )
    for kind in ("content", "head"):
        recall = [figures[f"cobought_recall@{k}_{kind}"]["value"] for k in (1, 5, 10)]
        assert 0.0 <= recall[0] <= recall[1] <= recall[2] <= 1.0
        assert figures[f"cobought_recall@10_{kind}"]["n"] > 20
    text = (out / "report.html").read_text()
    assert text.count("<svg") == 3
    assert "<h2>Neighbours</h2>" in text
    assert re.search(r"\d+ others", text)
    for name in figures:
        assert f"<td>{name}</td>" in text


@pytest.mark.parametrize("holdout", [None, 0, 2])
def test_recall_with_what_was_learned_from_users_is_shown_beside_that_of_content_where_it_is_fair(
    holdout: int | None,
) -> None:
    vectors = np.eye(4, dtype=np.float32)
    swap = vectors[[1, 0, 3, 2]]
    head = None if holdout is None else CooccurrenceHead(vectors, np.zeros(4), swap, np.zeros(4))
    codebook = fit_codebook(vectors, CodebookConfig(level_sizes=(2, 8), embedding_dim=4), head=head)
    codebook.holdout_events = holdout
    found = recall_figures(codebook, [], vectors, np.array([[0, 1], [2, 3]]), 0)
    assert found["cobought_recall@1_content"].value == 0.0  # all others are equally far
    if holdout == 2:
        assert found["cobought_recall@1_head"].value == 1.0  # partners are at one place
    else:
        assert not [name for name in found if name.endswith("_head")]


def test_a_codebook_that_is_not_there_is_named(folder: Path) -> None:
    arguments = [
        "codebook",
        "report",
        str(folder / "market"),
        "--artifacts",
        str(folder / "artifacts"),
        "--id",
        "other",
    ]
    result = CliRunner().invoke(app, [*arguments, "--out", str(folder / "none")])
    assert result.exit_code == 1
    assert "codebooks/other" in result.output
    assert not (folder / "none").exists()
