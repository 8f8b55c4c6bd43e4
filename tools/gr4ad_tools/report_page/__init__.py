"""The page that reports share: tiles, sections of drawings, whatever a report adds, and a table of all figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from gr4ad_tools.figures import Figure


def write_page(
    path: Path,
    package: str,
    template: str,
    document: Mapping[str, Any],
    *,
    title: str,
    subtitle: str,
    tiles: Mapping[str, str],
    sections: Sequence[Mapping[str, Any]],
    **more: Any,
) -> None:
    """Write one HTML file that needs nothing else; a reader sees the old one or the new one.

    Args:
        path: The file.
        package: Package whose template extends the page.
        template: The template's name.
        document: The figures, as written to summary.json.
        title: Heading.
        subtitle: Line below.
        tiles: Labels of the figures that stand out, by name; those that were not measured are left out.
        sections: Each with a title, a text and drawings: an SVG and a caption.
        more: What else the template asks for.
    """
    loaders = [jinja2.PackageLoader(package, "."), jinja2.PackageLoader("gr4ad_tools.report_page", ".")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined
    )
    figures = {name: Figure(**figure) for name, figure in document["figures"].items()}
    machine = document["machine"]
    html = environment.get_template(template).render(
        title=title,
        subtitle=subtitle,
        tiles=[
            {"value": format_value(figures[name]), "label": label} for name, label in tiles.items() if name in figures
        ],
        sections=sections,
        provenance=f"Printed by “{document['command']}” on {machine['cpus']} cores "
        f"({machine['gemm_gflops_f32']} GFLOP/s in float32).",
        rows=[
            {
                "name": name,
                "value": format_value(figure),
                "unit": figure.unit,
                "n": figure.n,
                "min": "" if figure.min is None else f"{figure.min:.4g}",
                "max": "" if figure.max is None else f"{figure.max:.4g}",
            }
            for name, figure in figures.items()
        ],
        **more,
    )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(html)
    partial.replace(path)


def format_value(figure: Figure) -> str:
    """Return a figure's value as a person reads it."""
    value = figure.value
    if math.isnan(value):
        return "not measured"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:,.1f}"
