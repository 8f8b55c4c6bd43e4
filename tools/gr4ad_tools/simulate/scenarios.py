"""What a market is made of: one configuration, and the named scenarios that vary it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

CONVERSION_TYPES = ("click", "install", "purchase", "lead", "follow")
AD_TYPES = ("short_video", "live_stream", "product", "external", "virtual_product", "local_service")
DAY_S = 86_400.0


@dataclass(frozen=True)
class MarketConfig:
    """Configuration of a simulated market; README.md has the formulas its numbers enter.

    Attributes:
        name: Scenario.
        users: Users.
        ads: Ads of the catalogue that is written out.
        new_ads: Further ads that exist for `Market.new_ads` only.
        accounts: Advertisers; their sizes follow a Zipf law.
        days: Days of logged history.
        online_days: Days after the log for which users go on changing; later times repeat the last day.
        unseen_share: Share of `ads` that start only when the log has ended, so that no log holds them.
        arriving_share: Share of `ads` that start at some time within the log instead of at its beginning.
        ended_share: Share of `ads` that end within the second half of the log.
        sessions_per_day: Mean sessions of a user and day.
        session_length: Mean requests of a session (geometric).
        cold_users: Share of users with almost no history.
        list_length: Ads shown per request.
        interests: Topics a user is interested in at a time.
        drift: Standard deviation of a day's step of a log interest.
        jump_rate: Probability per user and day that one interest is replaced by another topic.
        intent_stay: Probability that a session intent lasts to the next day.
        intent_related: Probability that it moves to a related topic; otherwise it is drawn from the interests.
        intent_share: Weight of the intent against the interests in what a user responds to.
        topic_effect: Click log-odds of a full topic match.
        style_effect: Click log-odds of a full style match.
        price_effect: Click log-odds at a user's ideal price point.
        price_width: Width of the ideal price point, in price ranks of 0 to 1.
        quality_effect: Click log-odds per standard deviation of the creative's quality.
        evening_effect: Click log-odds of an ad type at its favoured time of day.
        fatigue_creative: Click log-odds lost per natural logarithm of one plus recent exposures to the creative.
        fatigue_account: The same for the account.
        fatigue_days: Time constant of the decay of exposures, in days.
        click_exposures: Exposures that a click counts as.
        conversion_exposures: Exposures that a conversion counts as.
        ctr: Clicks per impression of the logging policy before anybody is tired of anything, by which the click
            intercept is set; the log's own rate is less than half of it.
        cvr: Conversions per click by conversion type, by which the conversion intercepts are set.
        examination_decay: Exponent of the fall of examination with position.
        exploration: Share of the logging policy's slots that are filled uniformly at random.
        policy_popularity: Exponent of popularity in the logging policy.
        policy_bid: Exponent of the bid's worth in the logging policy.
        policy_affinity: Weight of the noisy affinity in the logging policy.
        policy_noise: Share of noise in the interests that the logging policy believes in.
        budget_share: Daily budgets as a multiple of a campaign's fair share of daily revenue (log-normal around it).
        skipped_impression_rate: Share of impressions without a click that the written log keeps.
        bursts_per_day: Bursts of traffic a day.
        burst_minutes: Length of a burst.
        burst_factor: Traffic in a burst against the usual.
        shift_bid_share: Share of accounts whose bids change when the log has ended.
        shift_bid_factor: Factor of that change.
        shift_jump_share: Share of users whose interests are all drawn anew when the log has ended.
        shift_new_accounts: Whether the ads of `Market.new_ads` come from advertisers that the log does not know.
    """

    name: str = "steady"
    users: int = 3000
    ads: int = 4000
    new_ads: int = 1000
    accounts: int = 400
    days: int = 30
    online_days: int = 30
    unseen_share: float = 0.05
    arriving_share: float = 0.25
    ended_share: float = 0.08
    sessions_per_day: float = 0.33
    session_length: float = 8.0
    cold_users: float = 0.06
    list_length: int = 10
    interests: int = 4
    drift: float = 0.08
    jump_rate: float = 0.008
    intent_stay: float = 0.85
    intent_related: float = 0.1
    intent_share: float = 0.65
    topic_effect: float = 6.0
    style_effect: float = 2.0
    price_effect: float = 2.0
    price_width: float = 0.07
    quality_effect: float = 0.6
    evening_effect: float = 0.35
    fatigue_creative: float = 0.6
    fatigue_account: float = 0.06
    fatigue_days: float = 6.0
    click_exposures: float = 2000.0
    conversion_exposures: float = 5000.0
    ctr: float = 0.05
    cvr: tuple[tuple[str, float], ...] = (("install", 0.08), ("purchase", 0.025), ("lead", 0.05), ("follow", 0.09))
    examination_decay: float = 0.5
    exploration: float = 0.08
    policy_popularity: float = 0.6
    policy_bid: float = 0.7
    policy_affinity: float = 10.0
    policy_noise: float = 0.2
    budget_share: float = 2.5
    skipped_impression_rate: float = 0.015
    bursts_per_day: float = 0.0
    burst_minutes: float = 4.0
    burst_factor: float = 5.0
    shift_bid_share: float = 0.0
    shift_bid_factor: float = 2.0
    shift_jump_share: float = 0.0
    shift_new_accounts: bool = False

    def __post_init__(self) -> None:
        for name in ("users", "ads", "accounts", "days", "online_days", "list_length", "interests"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.new_ads < 0:
            raise ValueError(f"new_ads is {self.new_ads}: give 0 or more")
        for name in ("unseen_share", "arriving_share", "ended_share", "cold_users", "skipped_impression_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give a share of 0 to 1")
        if not 0 < self.exploration <= 1:
            raise ValueError(f"exploration is {self.exploration}: give a share above 0, so that every ad can be shown")


def steady() -> MarketConfig:
    """Return the market that changes slowly: the default."""
    return MarketConfig()


def cold() -> MarketConfig:
    """Return a market half of whose ads no log has ever seen."""
    return replace(steady(), name="cold", unseen_share=0.5)


def shift() -> MarketConfig:
    """Return a market that changes when the log ends: bids double in a third of the accounts, interests jump."""
    return replace(steady(), name="shift", shift_bid_share=1 / 3, shift_jump_share=0.5, shift_new_accounts=True)


def bursty() -> MarketConfig:
    """Return a market whose traffic rises fivefold for minutes, several times a day."""
    return replace(steady(), name="bursty", bursts_per_day=6.0)


def tiny() -> MarketConfig:
    """Return a market for tests, made in a second."""
    return replace(
        steady(), name="tiny", users=150, ads=240, new_ads=60, accounts=30, days=8, online_days=6, sessions_per_day=0.8
    )


SCENARIOS: dict[str, Callable[[], MarketConfig]] = {
    "steady": steady,
    "cold": cold,
    "shift": shift,
    "bursty": bursty,
    "tiny": tiny,
}


def scenario(name: str) -> MarketConfig:
    """Return a named configuration.

    Raises:
        ValueError: There is no such scenario.
    """
    if name not in SCENARIOS:
        raise ValueError(f"scenario is {name!r}: use one of {', '.join(SCENARIOS)}")
    return SCENARIOS[name]()
