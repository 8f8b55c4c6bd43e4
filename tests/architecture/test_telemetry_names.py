"""Names in traces and metrics come from the registry, so that each means one thing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from gr4ad_runtime import semconv

SERVICES = Path(__file__).parents[2] / "services"
NAMING_CALLS = {
    "start_span",
    "start_as_current_span",
    "set_attribute",
    "create_counter",
    "create_gauge",
    "create_histogram",
    "create_observable_counter",
    "create_observable_gauge",
    "create_observable_up_down_counter",
    "create_up_down_counter",
}
REGISTRY = {name: value for name, value in vars(semconv).items() if name.isupper()}


def written_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each name that is written out instead of taken from the registry."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        names: list[ast.expr | None] = []
        if node.func.attr in NAMING_CALLS:
            names += node.args[:1]
            dictionaries = [keyword.value for keyword in node.keywords if keyword.arg == "attributes"]
        elif node.func.attr == "set_attributes":
            dictionaries = node.args
        else:
            continue
        names += [key for value in dictionaries if isinstance(value, ast.Dict) for key in value.keys]
        for name in names:
            if isinstance(name, ast.Constant | ast.JoinedStr):
                yield name.lineno, ast.unparse(name)


@pytest.mark.parametrize("package", [path.name for path in sorted(SERVICES.iterdir()) if path.is_dir()])
def test_services_use_registered_names(package: str) -> None:
    found = {
        f"{path.relative_to(SERVICES)}:{line}": name
        for path in (SERVICES / package).rglob("*.py")
        for line, name in written_names(path.read_text())
    }
    assert found == {}, "register these in gr4ad_runtime.semconv"


def test_a_name_written_out_is_found() -> None:
    source = """
span.set_attribute("user.id", 1)
with tracer.start_as_current_span(semconv.SPAN, attributes={"a": 1, semconv.B: 2}): ...
span.set_attributes({f"b.{x}": 1})
meter.create_counter("c")
other.call("d")
"""
    assert {name for _, name in written_names(source)} == {"'user.id'", "'a'", "f'b.{x}'", "'c'"}


def test_a_name_is_registered_once() -> None:
    assert len(set(REGISTRY.values())) == len(REGISTRY)


def test_every_registered_name_is_used() -> None:
    sources = "\n".join(path.read_text() for path in SERVICES.rglob("*.py") if path.name != "semconv.py")
    assert [name for name in REGISTRY if f"semconv.{name}" not in sources] == []
