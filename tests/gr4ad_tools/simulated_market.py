"""A market of a size at which its rates can be told, and made in a second; never changed by the tests that share it."""

from functools import cache
from typing import Any

from gr4ad_tools.simulate import Market

MIDDLE: dict[str, Any] = {"users": 800, "ads": 1200, "accounts": 150, "new_ads": 300, "days": 12}


@cache
def market(name: str = "steady", seed: int = 0) -> Market:
    """Return a market with its log made; shared, so only to be looked at."""
    made = Market(name, seed, **MIDDLE)
    assert len(made.log) > 0
    return made
