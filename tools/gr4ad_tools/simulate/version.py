"""The version of the yardstick: figures from different simulators must not be compared unawares."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from gr4ad_tools.simulate.scenarios import MarketConfig


def version_hash(config: MarketConfig) -> str:
    """Return 16 hex digits that change with the simulator's code and with the configuration, not with the seed."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{path.name} {len(code)}\n".encode() + code)
    digest.update(json.dumps(asdict(config), sort_keys=True).encode())
    return digest.hexdigest()[:16]
