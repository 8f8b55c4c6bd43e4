"""Records of the raw public Amazon files, whichever release they are from.

| | 2014 | 2018 | 2023 |
| --- | --- | --- | --- |
| reviews | `reviewerID`, `asin`, `unixReviewTime` in seconds | the same | `user_id`, `parent_asin`, `timestamp` in ms |
| metadata | Python literals, `categories` a list of paths | JSON, `category` | JSON, `parent_asin`, `store` |
"""

from __future__ import annotations

import ast
import gzip
import html
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from gr4ad_core.learning.item_lines import (
    BRAND_LENGTH,
    CATEGORY_COUNT,
    DESCRIPTION_LENGTH,
    TITLE_LENGTH,
)

ASIN = re.compile(r"""["'](?:parent_)?asin["']\s*:\s*["']([^"']+)["']""")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
MILLISECONDS = 1e11  # times from here on are milliseconds
PROGRESS_LINES = 20_000
SHOWN = 80


class AmazonError(Exception):
    """A raw file cannot be converted; the message names file, line, field, value and remedy."""


@dataclass(frozen=True, slots=True)
class Review:
    """What of a review counts: who, what, when (unix seconds)."""

    user: str
    asin: str
    time: int


def read_lines(path: Path, on_progress: Callable[[float], None]) -> Iterator[tuple[int, str]]:
    """Yield numbered lines of a plain or gzip file, blank ones left out.

    Args:
        path: File; gzip if its name ends in .gz.
        on_progress: Called now and then with the share of the file's bytes read.

    Raises:
        AmazonError: The file is missing, unreadable, truncated or not UTF-8.
    """
    number = 0
    try:
        size = max(path.stat().st_size, 1)
        with path.open("rb") as raw:
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw)
            for number, line in enumerate(stream, start=1):
                if number % PROGRESS_LINES == 0:
                    on_progress(raw.tell() / size)
                text = line.decode("utf-8").strip()
                if text:
                    yield number, text
    except UnicodeDecodeError as error:
        raise AmazonError(f"{path}:{number}: line is not UTF-8: save the file as UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise AmazonError(f"{path}:{number + 1}: file is truncated or damaged ({error}): download it again") from error
    except OSError as error:
        raise AmazonError(f"{path}: file is unreadable ({error.strerror}): give the path of a readable file") from error
    on_progress(1.0)


def parse_review(path: Path, number: int, line: str) -> Review:
    """Return the review on a line.

    Raises:
        AmazonError: The line is no JSON object, or lacks the user, the item or the time.
    """
    record = _parse(path, number, line)
    user = record.get("reviewerID", record.get("user_id"))
    asin = record.get("parent_asin", record.get("asin"))
    time = record.get("unixReviewTime", record.get("timestamp"))
    if not isinstance(user, str) or not user:
        raise _not_a_review(path, number, "reviewerID", user)
    if not isinstance(asin, str) or not asin:
        raise _not_a_review(path, number, "asin", asin)
    if not isinstance(time, int | float) or isinstance(time, bool):
        raise _not_a_review(path, number, "unixReviewTime", time)
    seconds = float(time) / 1000.0 if abs(time) >= MILLISECONDS else float(time)
    if not math.isfinite(seconds) or seconds < 0:
        raise AmazonError(f"{path}:{number}: unixReviewTime is {time!r}: give unix time in seconds, 0 or later")
    return Review(user, asin, int(seconds))


def _not_a_review(path: Path, number: int, field: str, value: object) -> AmazonError:
    remedy = "give a review file: reviewerID or user_id, asin or parent_asin, unixReviewTime or timestamp on every line"
    return AmazonError(f"{path}:{number}: {field} is {value!r}: {remedy}")


def mentions(line: str, asins: dict[str, int]) -> bool:
    """Return whether a metadata line may be about one of some products: a quick look before parsing it."""
    found = ASIN.findall(line)
    return not found or any(asin in asins for asin in found)


def parse_metadata(path: Path, number: int, line: str) -> tuple[str, dict[str, Any]]:
    """Return a product's ASIN and its record in the form of `items.jsonl`, without an id.

    Raises:
        AmazonError: The line is neither a JSON object nor a Python dict, or lacks the ASIN.
    """
    record = _parse(path, number, line)
    asin = record.get("parent_asin", record.get("asin"))
    if not isinstance(asin, str) or not asin:
        raise AmazonError(f"{path}:{number}: asin is {asin!r}: is this a metadata file? It needs asin or parent_asin")
    categories = record.get("categories") or record.get("category") or []
    if categories and isinstance(categories[0], list):
        categories = categories[0]  # further paths name the same product again
    names = [_text(name)[:BRAND_LENGTH] for name in categories if isinstance(name, str)]
    return asin, {
        "asin": asin,
        "title": _text(record.get("title"))[:TITLE_LENGTH] or None,
        "brand": _text(record.get("brand") or record.get("store"))[:BRAND_LENGTH] or None,
        "categories": [name for name in names if name][:CATEGORY_COUNT],
        "price": _price(record.get("price")),
        "description": _text(record.get("description"))[:DESCRIPTION_LENGTH] or None,
    }


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        try:
            record = ast.literal_eval(line)  # literals only, never code
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            record = None
    if not isinstance(record, dict):
        shown = line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
        raise AmazonError(f"{path}:{number}: line is {shown!r}: give one JSON object or Python dict a line")
    return record


def _text(value: object) -> str:
    """Return text without entities, tags and runs of blanks; lists are joined."""
    if isinstance(value, list):
        value = " ".join(part for part in value if isinstance(part, str))
    if not isinstance(value, str):
        return ""
    return " ".join(re.sub(r"<[^>]{1,200}>", " ", html.unescape(value)).split())


def _price(value: object) -> float | None:
    """Return a price; of a range as "$5.00 - $7.50" the lower one."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) and value >= 0 else None
    found = NUMBER.search(value) if isinstance(value, str) and len(value) < 40 else None
    return float(found.group().replace(",", "")) if found else None
