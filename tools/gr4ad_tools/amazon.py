"""Convert the raw public Amazon review files into a normalised data folder.

- A user's first review of an item counts, later ones of the same item do not.
- k-core: users and items with fewer than k reviews are dropped until none is left.
- A user's reviews are in order of time, equal times (the release of 2014 knows days only) in the order of a seeded
  keyed hash. The released order is by ASIN inside a day, which no live system would know.
- Item ids are the ranks of blake2b(ASIN), user ids those of blake2b(reviewer): fixed, in an order that says nothing.
  The ASIN is kept in `items.jsonl.gz`, as a key for joins; the reviewer's name and text are not.

Files are read line by line; memory holds one entry per review and the metadata of the products that are kept. The
folder is made beside its place and renamed into it when it is whole.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tempfile
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.amazon_records import AmazonError, mentions, parse_metadata, parse_review, read_lines

__all__ = ["AmazonError", "Conversion", "convert"]

IntArray = NDArray[np.int64]
HEADER = "user_id,item_id,position,timestamp,event_type\n"


@dataclass(frozen=True)
class Conversion:
    """What a conversion read and kept.

    Attributes:
        reviews: Reviews read.
        users: Users kept.
        items: Items kept.
        interactions: Reviews kept.
        untitled: Items kept whose metadata has no title, or that have none.
    """

    reviews: int
    users: int
    items: int
    interactions: int
    untitled: int


@dataclass(frozen=True)
class _Reviews:
    users: list[str]
    asins: list[str]
    user_N: IntArray
    item_N: IntArray
    time_N: IntArray

    def only(self, kept_N: NDArray[np.bool_]) -> _Reviews:
        return _Reviews(self.users, self.asins, self.user_N[kept_N], self.item_N[kept_N], self.time_N[kept_N])


def convert(
    reviews: Path,
    meta: Path,
    out: Path,
    *,
    core: int = 5,
    seed: int = 0,
    on_progress: Callable[[str, float], None] = lambda name, share: None,
) -> Conversion:
    """Write `items.jsonl.gz` and `interactions.csv.gz` from raw review and metadata files.

    Args:
        reviews: Reviews, plain or gzip.
        meta: Metadata, plain or gzip.
        out: Folder to make.
        core: k of the k-core.
        seed: Of the order of equal times.
        on_progress: Called with "reviews" or "metadata" and the share done.

    Raises:
        AmazonError: `out` exists, a file is unreadable, truncated or has a bad line, or the k-core is empty.
    """
    if out.exists():
        raise AmazonError(f"{out}: folder exists: remove it or give another one")
    everything = _read_reviews(reviews, lambda share: on_progress("reviews", share))
    kept = _k_core(_first_reviews(everything), core)
    if not len(kept.user_N):
        raise AmazonError(f"{reviews}: no user and item has {core} reviews: give a smaller --core or the whole file")
    asins = {kept.asins[item]: int(item) for item in np.unique(kept.item_N)}
    metadata = _read_metadata(meta, asins, lambda share: on_progress("metadata", share))
    item_ids, user_ids = _numbers(list(asins)), _numbers([kept.users[user] for user in np.unique(kept.user_N)])
    records = [{"item_id": item_ids[asin], **metadata.get(asin, _unknown(asin))} for asin in asins]
    records.sort(key=lambda record: int(record["item_id"]))
    _write_folder(out, records, _rows(kept, item_ids, user_ids, seed))
    untitled = sum(record["title"] is None for record in records)
    return Conversion(len(everything.user_N), len(user_ids), len(item_ids), len(kept.user_N), untitled)


def _read_reviews(path: Path, on_progress: Callable[[float], None]) -> _Reviews:
    users: dict[str, int] = {}
    asins: dict[str, int] = {}
    user_N, item_N, time_N = array("q"), array("q"), array("q")
    for number, line in read_lines(path, on_progress):
        review = parse_review(path, number, line)
        user_N.append(users.setdefault(review.user, len(users)))
        item_N.append(asins.setdefault(review.asin, len(asins)))
        time_N.append(review.time)
    arrays = (np.array(column, dtype=np.int64) for column in (user_N, item_N, time_N))
    return _Reviews(list(users), list(asins), *arrays)


def _first_reviews(reviews: _Reviews) -> _Reviews:
    order = np.lexsort((reviews.time_N, reviews.item_N, reviews.user_N))
    same_user = np.diff(reviews.user_N[order], prepend=-1) == 0
    same_item = np.diff(reviews.item_N[order], prepend=-1) == 0
    kept_N = np.zeros(len(order), dtype=bool)
    kept_N[order[~(same_user & same_item)]] = True
    return reviews.only(kept_N)


def _k_core(reviews: _Reviews, k: int) -> _Reviews:
    while True:
        user_counts = np.bincount(reviews.user_N, minlength=len(reviews.users))
        item_counts = np.bincount(reviews.item_N, minlength=len(reviews.asins))
        kept_N = (user_counts[reviews.user_N] >= k) & (item_counts[reviews.item_N] >= k)
        if kept_N.all():
            return reviews
        reviews = reviews.only(kept_N)


def _read_metadata(
    path: Path, asins: dict[str, int], on_progress: Callable[[float], None]
) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    for number, line in read_lines(path, on_progress):
        if mentions(line, asins):
            asin, record = parse_metadata(path, number, line)
            if asin in asins:
                records.setdefault(asin, record)
    return records


def _unknown(asin: str) -> dict[str, Any]:
    return {"asin": asin, "title": None, "brand": None, "categories": [], "price": None, "description": None}


def _numbers(names: list[str]) -> dict[str, int]:
    """Number names from 1 by the rank of their hash."""
    ranked = sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
    return {name: number for number, name in enumerate(ranked, start=1)}


def _rows(reviews: _Reviews, item_ids: dict[str, int], user_ids: dict[str, int], seed: int) -> str:
    user_id_N = np.array([user_ids[reviews.users[user]] for user in reviews.user_N])
    item_id_N = np.array([item_ids[reviews.asins[item]] for item in reviews.item_N])
    # Keyed by user and item, the lot does not depend on the order of the raw file, which is that of ASINs.
    lots_N = np.array(
        [
            int.from_bytes(hashlib.blake2b(f"{seed} {user} {item}".encode(), digest_size=7).digest())
            for user, item in zip(user_id_N.tolist(), item_id_N.tolist(), strict=True)
        ]
    )
    order = np.lexsort((lots_N, reviews.time_N, user_id_N))
    text = io.StringIO()
    text.write(HEADER)
    last_user, position = -1, 0
    columns = (user_id_N[order].tolist(), item_id_N[order].tolist(), reviews.time_N[order].tolist())
    for user, item, time in zip(*columns, strict=True):
        position = position + 1 if user == last_user else 0
        last_user = user
        text.write(f"{user},{item},{position},{time},review\n")
    return text.getvalue()


def _write_folder(out: Path, records: list[dict[str, Any]], rows: str) -> None:
    partial: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (partial / "items.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
        (partial / "interactions.csv.gz").write_bytes(gzip.compress(rows.encode(), mtime=0))
        partial.chmod(0o755)  # a temporary folder is its maker's alone
        partial.rename(out)
    except OSError as error:
        remedy = "free space or give another folder"
        raise AmazonError(f"{out}: folder cannot be written ({error.strerror}): {remedy}") from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial)
