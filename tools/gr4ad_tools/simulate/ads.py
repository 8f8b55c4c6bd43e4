"""The supply side: accounts own products, products have creatives, campaigns run creatives.

An ad is one creative in one campaign.

Shapes: N ads, C creatives, A accounts, G campaigns, K topics, Y styles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.simulate.creatives import Creatives, make_creatives
from gr4ad_tools.simulate.scenarios import CONVERSION_TYPES, MarketConfig

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ACCOUNT_ZIPF = 0.9  # exponent of the sizes of accounts
RUNS_PER_CREATIVE = (0.55, 0.28, 0.17)  # share of creatives run by one, two, three campaigns
CONVERSION_SHARES = (0.25, 0.2, 0.3, 0.15, 0.1)  # of CONVERSION_TYPES
MEDIAN_BID = (0.4, 2.5, 9.0, 5.0, 2.2)  # of CONVERSION_TYPES, in units of the currency
BID_SPREAD = 0.5  # standard deviation of the log bid
CAMPAIGN_ADS = 10  # an account opens another campaign of a type after this many ads
BUDGET_SPREAD = 0.6
MICROS = 1_000_000


@dataclass(frozen=True)
class Ads:
    """All ads of a market, the written catalogue first, then those of `Market.new_ads`.

    Attributes:
        item_ids: Public ids, in an order that tells nothing.
        creative_N: Creative of each ad.
        campaign_N: Campaign of each ad.
        account_N: Account of each ad.
        conversion_type_N: Index into CONVERSION_TYPES.
        ad_type_N: Index into AD_TYPES.
        start_day_N: First day; may be the end of the log.
        end_day_N: Day at whose beginning the ad ends; a large number where it does not.
        bid_micros_N: Bid per paid event while the log runs.
        later_bid_micros_N: Bid per paid event once the log has ended; differs under `shift` only.
        budget_G: Weight of each campaign's daily budget; means 1.
        conversion_effect_A: Conversion log-odds of an account.
        reported_A: Probability that an account reports a conversion.
        creatives: What the ads show.
    """

    item_ids: list[str]
    creative_N: IntArray
    campaign_N: IntArray
    account_N: IntArray
    conversion_type_N: IntArray
    ad_type_N: IntArray
    start_day_N: IntArray
    end_day_N: IntArray
    bid_micros_N: IntArray
    later_bid_micros_N: IntArray
    budget_G: FloatArray
    conversion_effect_A: FloatArray
    reported_A: FloatArray
    creatives: Creatives

    def __len__(self) -> int:
        return len(self.item_ids)


NEVER = 1 << 30


def make_ads(config: MarketConfig, rng: np.random.Generator) -> Ads:
    """Draw all ads of a market."""
    catalogue = _runs(config.ads, 0, config.accounts, rng)
    if config.new_ads:
        if config.shift_new_accounts:
            later = _runs(config.new_ads, config.accounts, max(1, config.accounts // 4), rng)
        else:
            later = _runs(config.new_ads, 0, config.accounts, rng)
        runs = _Runs(
            np.concatenate([catalogue.creative_N, later.creative_N + len(catalogue.account_C)]),
            np.concatenate([catalogue.account_C, later.account_C]),
            np.concatenate([catalogue.conversion_type_N, later.conversion_type_N]),
        )
    else:
        runs = catalogue
    n_accounts = int(runs.account_C.max()) + 1
    creatives = make_creatives(runs.account_C, rng)
    account_N = runs.account_C[runs.creative_N]
    campaign_N = _campaigns(account_N, runs.conversion_type_N)
    bid_N = _bids(campaign_N, runs.conversion_type_N, rng)
    raised_A = rng.random(n_accounts) < config.shift_bid_share
    start_N, end_N = _life(config, len(account_N), rng)
    return Ads(
        item_ids=_ids(config, len(account_N), rng),
        creative_N=runs.creative_N,
        campaign_N=campaign_N,
        account_N=account_N,
        conversion_type_N=runs.conversion_type_N,
        ad_type_N=creatives.ad_type_C[runs.creative_N],
        start_day_N=start_N,
        end_day_N=end_N,
        bid_micros_N=bid_N,
        later_bid_micros_N=np.where(raised_A[account_N], (bid_N * config.shift_bid_factor).astype(np.int64), bid_N),
        budget_G=_normalised(rng.lognormal(0.0, BUDGET_SPREAD, int(campaign_N.max()) + 1)),
        conversion_effect_A=rng.normal(0.0, 0.35, n_accounts),
        reported_A=rng.uniform(0.8, 1.0, n_accounts),
        creatives=creatives,
    )


@dataclass(frozen=True)
class _Runs:
    creative_N: IntArray
    account_C: IntArray
    conversion_type_N: IntArray


def _runs(n_ads: int, first_account: int, n_accounts: int, rng: np.random.Generator) -> _Runs:
    """Draw creatives until their runs make `n_ads` ads; the runs of one creative differ in conversion type."""
    counts = 1 + rng.choice(len(RUNS_PER_CREATIVE), size=n_ads, p=RUNS_PER_CREATIVE)
    n_creatives = int(np.searchsorted(np.cumsum(counts), n_ads)) + 1
    creative_N = np.repeat(np.arange(n_creatives), counts[:n_creatives])[:n_ads]
    sizes = np.arange(1, n_accounts + 1, dtype=np.float64) ** -ACCOUNT_ZIPF
    sizes /= sizes.sum()
    account_C = first_account + rng.permutation(n_accounts)[rng.choice(n_accounts, size=n_creatives, p=sizes)]
    # The order of log weights plus Gumbel noise is a draw without replacement: no type twice inside a creative.
    scores = np.log(CONVERSION_SHARES) + rng.gumbel(size=(n_creatives, len(CONVERSION_TYPES)))
    order = np.argsort(-scores, axis=1)
    run_N = np.arange(n_ads) - np.concatenate([[0], np.cumsum(counts[:n_creatives])])[creative_N]
    return _Runs(creative_N, account_C, order[creative_N, run_N])


def _campaigns(account_N: IntArray, conversion_type_N: IntArray) -> IntArray:
    """Group an account's ads of one conversion type into campaigns of at most CAMPAIGN_ADS ads."""
    group_N = account_N * len(CONVERSION_TYPES) + conversion_type_N
    order = np.argsort(group_N, kind="stable")
    starts = np.flatnonzero(np.diff(group_N[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    key_N = np.empty_like(group_N)
    key_N[order] = group_N[order] * len(order) + rank // CAMPAIGN_ADS
    return np.unique(key_N, return_inverse=True)[1].astype(np.int64)


def _bids(campaign_N: IntArray, conversion_type_N: IntArray, rng: np.random.Generator) -> IntArray:
    factor_G = rng.lognormal(0.0, BID_SPREAD, int(campaign_N.max()) + 1)
    bid_N = np.asarray(MEDIAN_BID)[conversion_type_N] * factor_G[campaign_N]
    return np.maximum(np.round(bid_N, 2) * MICROS, MICROS // 100).astype(np.int64)


def _life(config: MarketConfig, n: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Draw first and last days: some ads of the catalogue start late, some end early, some only after the log."""
    start_N = np.full(n, config.days, dtype=np.int64)
    end_N = np.full(n, NEVER, dtype=np.int64)
    kind = rng.permutation(config.ads) / config.ads
    start_N[: config.ads] = np.where(
        kind < config.unseen_share,
        config.days,
        np.where(kind < config.unseen_share + config.arriving_share, rng.integers(0, config.days, config.ads), 0),
    )
    ends = (start_N[: config.ads] == 0) & (rng.random(config.ads) < config.ended_share)
    end_N[: config.ads][ends] = rng.integers(config.days // 2, config.days, int(ends.sum())) + 1
    return start_N, end_N


def _ids(config: MarketConfig, n: int, rng: np.random.Generator) -> list[str]:
    # A catalogue that no loop has ordered: ids are handed out by lot, those of new ads after them.
    numbers = np.concatenate([rng.permutation(config.ads), config.ads + rng.permutation(n - config.ads)])
    return [f"ad-{number:06d}" for number in numbers]


def _normalised(values: FloatArray) -> FloatArray:
    return np.asarray(values / values.mean())
