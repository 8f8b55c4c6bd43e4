"""Imports point one way: the rules stand in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_ERROR, EXIT_STATUS_SUCCESS, lint_imports

CONFIG = Path(__file__).parents[2] / "pyproject.toml"


def test_imports_point_one_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint_imports(config_filename=str(CONFIG), no_cache=True) == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "forbidden"),
    [
        ("gr4ad_runtime", "sqlalchemy"),
        ("ad_generator", "torch"),
        ("sid_assigner", "gr4ad_core"),
        ("gr4ad_core", "numpy"),
    ],
)
def test_an_import_that_is_there_would_be_found(tmp_path: Path, source: str, forbidden: str) -> None:
    """Forbids what is imported: the linter sees every package, and external ones too."""
    contract = "[[tool.importlinter.contracts]]"
    kept = CONFIG.read_text().partition(contract)[0]
    rule = f'name = "x"\ntype = "forbidden"\nsource_modules = ["{source}"]\nforbidden_modules = ["{forbidden}"]\n'
    config = tmp_path / "pyproject.toml"
    config.write_text(f"{kept}{contract}\n{rule}")
    assert lint_imports(config_filename=str(config), no_cache=True) == EXIT_STATUS_ERROR
