"""The simulator's formulas of behaviour and money for one user and one ad, in plain Python."""

import math

from gr4ad_tools.simulate.ads import Ads
from gr4ad_tools.simulate.scenarios import CONVERSION_TYPES, MarketConfig
from gr4ad_tools.simulate.users import Users

DAY = 86_400.0
FAVOURED_HOUR = {
    "short_video": 21.0,
    "live_stream": 20.0,
    "product": 14.0,
    "external": 10.0,
    "virtual_product": 23.0,
    "local_service": 12.0,
}


def topic_match(config: MarketConfig, users: Users, ads: Ads, user: int, ad: int, day: int) -> float:
    """Return ψ·z: what the user wants on a day against the creative's topics."""
    wants: dict[int, float] = {}
    for topic, weight in zip(users.interests_UDM[user, day], users.weights_UDM[user, day], strict=True):
        wants[int(topic)] = wants.get(int(topic), 0.0) + (1 - config.intent_share) * float(weight)
    intent = int(users.intent_UD[user, day])
    wants[intent] = wants.get(intent, 0.0) + config.intent_share
    creative = int(ads.creative_N[ad])
    topics, weights = ads.creatives.topics_C2[creative], ads.creatives.topic_weights_C2[creative]
    return sum(wants.get(int(topic), 0.0) * float(weight) for topic, weight in zip(topics, weights, strict=True))


def click_log_odds(
    config: MarketConfig, users: Users, ads: Ads, user: int, ad: int, ad_type: str, day: int, hour: float,
    seen: tuple[float, float],
) -> float:  # fmt: skip
    """Return the log-odds of a click without the intercept; `seen` are exposures to the creative and to the account."""
    creative = int(ads.creative_N[ad])
    made = ads.creatives
    style = sum(float(x) * float(y) for x, y in zip(made.style_CY[creative], users.taste_UY[user], strict=True))
    department = int(made.topics_C2[creative, 0]) // 4
    distance = (made.price_rank_C[creative] - users.ideal_price_UP[user, department]) / config.price_width
    return (
        config.topic_effect * topic_match(config, users, ads, user, ad, day)
        + config.style_effect * style
        + config.price_effect * math.exp(-0.5 * distance**2)
        + config.quality_effect * float(made.quality_C[creative])
        + config.evening_effect * math.cos(2 * math.pi * (hour - FAVOURED_HOUR[ad_type]) / 24)
        - config.fatigue_creative * math.log(1 + seen[0])
        - config.fatigue_account * math.log(1 + seen[1])
    )


def conversion_log_odds(
    config: MarketConfig, users: Users, ads: Ads, user: int, ad: int, day: int, price_z: float
) -> float:
    """Return the log-odds of a conversion given a click, without the type's intercept."""
    kind = int(ads.conversion_type_N[ad])
    creative = int(ads.creative_N[ad])
    value = (
        float(users.propensity_UV[user, kind])
        + float(ads.conversion_effect_A[ads.account_N[ad]])
        + 1.0 * topic_match(config, users, ads, user, ad, day)
        + 0.25 * float(ads.creatives.quality_C[creative])
    )
    if CONVERSION_TYPES[kind] == "purchase":
        value -= float(users.price_sensitivity_U[user]) * price_z
    return value
