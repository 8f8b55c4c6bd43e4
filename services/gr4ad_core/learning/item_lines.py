"""`items.jsonl`: one ad a line, its defaults and its limits."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from gr4ad_core.learning.folder_problem import Problem, shown

AD_TYPES = ("short_video", "live_stream", "product", "external", "virtual_product", "local_service")
CONVERSION_TYPES = ("click", "install", "purchase", "lead", "follow")
STATES = ("active", "paused")

# The limits of the contracts: what is longer could be read here but not be ingested.
ID_LENGTH = 128
TITLE_LENGTH = 2048
BRAND_LENGTH = 256
DESCRIPTION_LENGTH = 16384
CATEGORY_COUNT = 16
MAX_BID_MICROS = 1_000_000_000_000
DEFAULT_BID_MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class Item:
    """An ad of a data folder, defaults applied.

    Attributes:
        item_id: Identifier, unique in the folder.
        title: Title; empty where there is none.
        brand: Brand; empty where there is none.
        categories: Category path, coarse to fine.
        description: Description; empty where there is none.
        price: Price in units of the account currency; None where there is none.
        advertiser_id: Account that pays; the brand by default, else the item's own id.
        ad_type: One of AD_TYPES; product by default.
        conversion_type: One of CONVERSION_TYPES; purchase by default.
        bid_micros: Bid per paid event in micros; 1,000,000 by default.
        state: active (the default) or paused.
    """

    item_id: str
    title: str
    brand: str
    categories: tuple[str, ...]
    description: str
    price: float | None
    advertiser_id: str
    ad_type: str
    conversion_type: str
    bid_micros: int
    state: str


class FieldError(ValueError):
    """A field of a line is wrong."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(field)
        self.field, self.value, self.remedy = field, value, remedy


def parse_items(file: str, text: str, *, whole: bool) -> tuple[list[Item], list[Problem]]:
    """Parse the lines of an items file; blank lines are skipped.

    Args:
        file: Name of the file, for problems.
        text: Its text.
        whole: Whether that is all of it; an empty rest of a damaged file is no further problem.

    Returns:
        The good items in file order and what is wrong with the others.
    """
    items: list[Item] = []
    problems: list[Problem] = []
    line_of: dict[str, int] = {}
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            item = _item(content)
            if item.item_id in line_of:
                remedy = f"remove one: the id is already that of line {line_of[item.item_id]}"
                raise FieldError("item_id", item.item_id, remedy)
        except FieldError as error:
            problems.append(Problem(file, line, error.field, shown(error.value), error.remedy))
        else:
            line_of[item.item_id] = line
            items.append(item)
    if whole and not items and not problems:
        problems.append(Problem(file, 0, "file", "empty", "write one JSON object a line, one per item"))
    return items, problems


def _item(content: str) -> Item:
    try:
        record = json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        raise FieldError("line", content, f"write one JSON object a line ({error})") from error
    if not isinstance(record, dict):
        raise FieldError("line", record, "write a JSON object with an item_id")
    item_id = identifier(record, "item_id")
    if not item_id:
        raise FieldError("item_id", record.get("item_id"), "give every item an id, a string or an integer")
    brand = _text(record, "brand", BRAND_LENGTH)
    return Item(
        item_id=item_id,
        title=_text(record, "title", TITLE_LENGTH),
        brand=brand,
        categories=_categories(record),
        description=_text(record, "description", DESCRIPTION_LENGTH),
        price=_price(record),
        advertiser_id=identifier(record, "advertiser_id") or brand[:ID_LENGTH] or item_id,
        ad_type=_word(record, "ad_type", AD_TYPES, "product"),
        conversion_type=_word(record, "conversion_type", CONVERSION_TYPES, "purchase"),
        bid_micros=_bid_micros(record),
        state=_word(record, "state", STATES, "active"),
    )


def identifier(record: dict[str, Any], field: str) -> str:
    """Return an id as a string, "" if absent or null; ids may be strings or integers.

    Raises:
        FieldError: It is neither, or too long.
    """
    value = record.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise FieldError(field, value, "give a string or an integer")
    text = str(value)
    if len(text) > ID_LENGTH:
        raise FieldError(field, value, f"shorten it to {ID_LENGTH} characters")
    return text


def _text(record: dict[str, Any], field: str, limit: int) -> str:
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FieldError(field, value, "give a string or null")
    if len(value) > limit:
        raise FieldError(field, value, f"shorten its {len(value)} characters to {limit}")
    return value


def _categories(record: dict[str, Any]) -> tuple[str, ...]:
    value = record.get("categories")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise FieldError("categories", value, 'give a list of strings, coarse to fine, as ["Beauty", "Make-up"]')
    if len(value) > CATEGORY_COUNT:
        raise FieldError("categories", value, f"keep the first {CATEGORY_COUNT} of its {len(value)} levels")
    if any(len(name) > BRAND_LENGTH for name in value):
        raise FieldError("categories", value, f"shorten each level to {BRAND_LENGTH} characters")
    return tuple(value)


def _price(record: dict[str, Any]) -> float | None:
    value = record.get("price")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError("price", value, "give a number or null")
    if not math.isfinite(value) or value < 0:
        raise FieldError("price", value, "give a finite number of 0 or more, or null")
    return float(value)


def _bid_micros(record: dict[str, Any]) -> int:
    value = record.get("bid_micros")
    if value is None:
        return DEFAULT_BID_MICROS
    if isinstance(value, bool) or not isinstance(value, int):
        raise FieldError("bid_micros", value, "give an integer, in micros: 1.50 is 1500000")
    if not 0 <= value <= MAX_BID_MICROS:
        raise FieldError("bid_micros", value, f"give 0 to {MAX_BID_MICROS}; a bid is never negative")
    return value


def _word(record: dict[str, Any], field: str, words: tuple[str, ...], default: str) -> str:
    value = record.get(field)
    if value is None:
        return default
    if value not in words:
        raise FieldError(field, value, f"use one of {', '.join(words)}")
    return str(value)
