"""A market as a normalised data folder: the catalogue and the log, and nothing of the truth."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gr4ad_tools.simulate.ads import Ads
from gr4ad_tools.simulate.event_log import CLICK, CONVERSION, IMPRESSION, EventLog
from gr4ad_tools.simulate.scenarios import AD_TYPES, CONVERSION_TYPES
from gr4ad_tools.simulate.users import Users

EVENT_TYPES = {IMPRESSION: "impression", CLICK: "click", CONVERSION: "conversion"}
COLUMNS = "user_id,item_id,position,timestamp,event_type,slot,propensity"


def item_records(ads: Ads, numbers: Iterable[int], ended_by_day: int) -> list[dict[str, Any]]:
    """Return ads in the form of `items.jsonl`; those that have ended by a day are paused."""
    creatives = ads.creatives
    records = []
    for number in numbers:
        creative = int(ads.creative_N[number])
        records.append(
            {
                "item_id": ads.item_ids[number],
                "title": creatives.titles[creative],
                "brand": creatives.brands[creative],
                "categories": creatives.categories[creative],
                "price": float(creatives.price_C[creative]),
                "description": creatives.descriptions[creative],
                "advertiser_id": f"account-{int(ads.account_N[number]):05d}",
                "ad_type": AD_TYPES[int(ads.ad_type_N[number])],
                "conversion_type": CONVERSION_TYPES[int(ads.conversion_type_N[number])],
                "bid_micros": int(ads.bid_micros_N[number]),
                "state": "paused" if ads.end_day_N[number] <= ended_by_day else "active",
            }
        )
    return records


def write_folder(folder: Path, records: list[dict[str, Any]], ads: Ads, users: Users, log: EventLog) -> None:
    """Write `items.jsonl.gz` by item id and `interactions.csv.gz` by user id and time; each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(records, key=lambda record: str(record["item_id"]))
    _write(folder / "items.jsonl.gz", "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in ordered))
    rank_U = np.argsort(np.argsort(np.array(users.user_ids)))
    order = np.argsort(rank_U[log.users_E], kind="stable")  # events are in order of time inside a user
    text = io.StringIO()
    text.write(COLUMNS + "\n")
    last_user, position = -1, 0
    columns = (log.users_E, log.ads_E, log.times_E, log.behaviors_E, log.slots_E, log.propensities_E)
    for user, ad, time, behavior, slot, propensity in zip(*(column[order].tolist() for column in columns), strict=True):
        position = position + 1 if user == last_user else 0
        last_user = user
        text.write(
            f"{users.user_ids[user]},{ads.item_ids[ad]},{position},{int(time)},{EVENT_TYPES[behavior]},"
            f"{slot},{propensity:.3g}\n"
        )
    _write(folder / "interactions.csv.gz", text.getvalue())


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))
    partial.replace(path)
