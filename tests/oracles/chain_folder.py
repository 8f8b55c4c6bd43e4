"""A data folder in which each user walks through the ads in order: easy to learn, and its next ad is known."""

from __future__ import annotations

import json
from pathlib import Path


def write_chain_folder(folder: Path, ads: int = 40, users: int = 40, length: int = 10) -> Path:
    """Write items `ad-0` … and interactions: user u takes ads u, u + 1, … modulo the number of ads."""
    folder.mkdir(parents=True)
    items = [json.dumps({"item_id": f"ad-{number}", "title": f"ad {number}"}) for number in range(ads)]
    (folder / "items.jsonl").write_text("\n".join(items) + "\n")
    rows = ["user_id,item_id,position,timestamp,event_type"]
    for user in range(users):
        for position in range(length):
            ad = (user + position) % ads
            rows.append(f"user-{user},ad-{ad},{position},{1_600_000_000 + 86_400 * position},purchase")
    (folder / "interactions.csv").write_text("\n".join(rows) + "\n")
    return folder
