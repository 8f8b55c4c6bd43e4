"""A simulated ad market: the demo's data, and the yardstick for revenue. README.md has the formulas."""

from gr4ad_tools.simulate.market import Market, Response
from gr4ad_tools.simulate.scenarios import SCENARIOS, MarketConfig
from gr4ad_tools.simulate.version import version_hash

__all__ = ["SCENARIOS", "Market", "MarketConfig", "Response", "version_hash"]
