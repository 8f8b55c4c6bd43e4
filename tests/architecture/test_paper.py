"""PAPER.md names code and tests that exist, and leaves no claim without either."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPER = (ROOT / "PAPER.md").read_text()
REFERENCE = re.compile(r"`([\w/]+\.py):([\w.]+)`")
MAX_LINE = 200


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def defines(scope: ast.Module | ast.ClassDef, symbol: str) -> bool:
    """Whether a dotted name, such as `Class.method`, is defined in a module's or class's own body."""
    name, _, rest = symbol.partition(".")
    for node in scope.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return not rest or defines(node, rest)
        if rest:
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return True
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return True
    return False


def is_test(path: str) -> bool:
    return Path(path).name.startswith("test_")


def missing(text: str) -> list[str]:
    """Return the references in a text that lead nowhere."""
    lost = []
    for path, symbol in REFERENCE.findall(text):
        bases = ("tests",) if is_test(path) else ("services", "tools")
        files = [ROOT / base / path for base in bases if (ROOT / base / path).is_file()]
        if not any(defines(parse(file), symbol) for file in files):
            lost.append(f"{path}:{symbol}")
    return lost


def claim_rows() -> list[tuple[str, str, str]]:
    """Return the rows of the tables of claims: claim, code, test."""
    rows, inside = [], False
    for line in PAPER.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells == ["claim", "code", "test"]:
            inside = True
        elif not cells:
            inside = False
        elif inside and set(line) - set("|- "):
            claim, code, test = cells
            rows.append((claim, code, test))
    return rows


def test_every_reference_leads_somewhere() -> None:
    assert missing(PAPER) == []


def test_every_claim_has_code_and_a_test() -> None:
    rows = claim_rows()
    assert len(rows) > 40
    for claim, code, test in rows:
        found = REFERENCE.fullmatch(test)
        assert found is not None, f"{claim or code}: name one test"
        assert is_test(found[1]), f"{claim or code}: {test} is no test"
        assert found[2].startswith("test_"), f"{claim or code}: {test} is no test"
        assert REFERENCE.fullmatch(code) or not (claim or code), f"{claim or code}: name the code"


@pytest.mark.parametrize("section", ["1.1", "1.2", "2.1", "2.2", "2.3", "3.1", "3.2", "3.3", "3.4", "4", "5"])
def test_every_section_of_the_method_is_spoken_of(section: str) -> None:
    assert re.search(rf"§{re.escape(section)}(?!\.?\d)", PAPER), f"say what becomes of method.md §{section}"


def test_lines_are_readable() -> None:
    assert [number for number, line in enumerate(PAPER.splitlines(), 1) if len(line) > MAX_LINE] == []


def test_a_reference_that_leads_nowhere_is_found() -> None:
    bad = [
        "gr4ad_core/model/lazy_ar.py:Lazy",
        "gr4ad_core/model/lazy_ar.py:LazyAr.fly",
        "gr4ad_core/model/nowhere.py:LazyAr",
        "gr4ad_core/model/test_lazy_ar.py:test_nothing",
    ]
    good = ["gr4ad_core/model/lazy_ar.py:LazyAr.encode_context", "gr4ad_core/sid/ad_content.py:INSTRUCTIONS"]
    assert missing(" ".join(f"`{reference}`" for reference in bad + good)) == bad
