"""What every package and file looks like."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for base in ("services", "tools") for path in (ROOT / base).glob("*/__init__.py"))
SERVICES = [package for package in PACKAGES if package.parent.name == "services" and "gr4ad" not in package.name]
SOURCES = sorted(
    path
    for base in ("services", "tools", "tests")
    for path in (ROOT / base).rglob("*.py")
    if "protos" not in path.parts
)
MAX_LINES = 400
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc"}


def test_the_packages_are_found() -> None:
    assert {package.name for package in PACKAGES} >= {
        "ad_generator",
        "gr4ad_core",
        "gr4ad_runtime",
        "gr4ad_tools",
        "reward_logger",
        "rspo_trainer",
        "sid_assigner",
    }


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_is_typed(package: Path) -> None:
    assert (package / "py.typed").exists(), "type checkers of its users look no further without it"


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_a_service_has_its_parts(service: Path) -> None:
    parts = ("__main__.py", "settings.py", "servicer.py", "README.md", "Dockerfile")
    assert [part for part in parts if not (service / part).exists()] == []


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_files_are_named_by_a_noun_to_search_for() -> None:
    assert [path for path in SOURCES if path.stem in SAYS_NOTHING or path.parent.name in SAYS_NOTHING] == []


def test_a_test_folder_is_no_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == [], "tests are imported by path (importmode=importlib)"
