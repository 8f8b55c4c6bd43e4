"""The normalised data folder: `items.jsonl[.gz]` and `interactions.csv[.gz]`.

Every consumer reads a folder through `read_items` and `read_interactions`, which refuse a folder at its first problem;
`check_folder` lists them all.

The columns of the interactions file are `user_id,item_id,position,timestamp,event_type`. A user's rows stand together
and rise in position; `timestamp` is unix seconds or empty; `event_type` is impression, click, conversion, or one of
the conversion's public stand-ins, review and purchase.
"""

from __future__ import annotations

from pathlib import Path

from gr4ad_core.learning.folder_file import locate, read_text
from gr4ad_core.learning.folder_problem import DataFolderError, Problem
from gr4ad_core.learning.interaction_rows import (
    CLICK,
    CONVERSION,
    IMPRESSION,
    Interactions,
    hold_out,
    parse_interactions,
)
from gr4ad_core.learning.item_lines import Item, parse_items

__all__ = [
    "CLICK",
    "CONVERSION",
    "IMPRESSION",
    "INTERACTIONS_FILE",
    "ITEMS_FILE",
    "DataFolderError",
    "Interactions",
    "Item",
    "Problem",
    "check_folder",
    "hold_out",
    "read_interactions",
    "read_items",
]

ITEMS_FILE = "items.jsonl"
INTERACTIONS_FILE = "interactions.csv"


def read_items(folder: Path | str) -> list[Item]:
    """Read the items of a folder in file order, defaults applied.

    Raises:
        DataFolderError: The file is missing, damaged, or has a bad line.
    """
    items, problems = _items(Path(folder))
    if problems:
        raise DataFolderError.of(problems[0])
    return items


def read_interactions(folder: Path | str) -> Interactions:
    """Read the interactions of a folder; the items file is read too, as it is their vocabulary.

    Raises:
        DataFolderError: A file is missing, damaged, or has a bad line.
    """
    folder = Path(folder)
    interactions, problems = _interactions(folder, [item.item_id for item in read_items(folder)])
    if problems:
        raise DataFolderError.of(problems[0])
    return interactions


def check_folder(folder: Path | str) -> list[Problem]:
    """Return everything wrong with a folder, by file and line; an empty list means that it can be used."""
    folder = Path(folder)
    try:
        items, problems = _items(folder)
    except DataFolderError as error:
        items, problems = [], [error.problem]
    try:
        _, found = _interactions(folder, [item.item_id for item in items])
    except DataFolderError as error:
        found = [error.problem]
    if problems:
        # Rows of items whose own line is bad would be called unknown, which they are not.
        found = [problem for problem in found if problem.field != "item_id"]
    return list(dict.fromkeys(problems + found))


def _items(folder: Path) -> tuple[list[Item], list[Problem]]:
    path = locate(folder, ITEMS_FILE)
    text, damage = read_text(path)
    items, problems = parse_items(path.name, text, whole=not damage)
    return items, sorted(problems + damage)


def _interactions(folder: Path, item_ids: list[str]) -> tuple[Interactions, list[Problem]]:
    path = locate(folder, INTERACTIONS_FILE)
    text, damage = read_text(path)
    interactions, problems = parse_interactions(path.name, text, item_ids, whole=not damage)
    return interactions, sorted(problems + damage)
