"""What ads show: a topic mixture, a style, a price, a quality, and text drawn from the vocabularies of its topics.

The text tells a careful reader the topics, the style and the price tier. Quality is in none of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from gr4ad_tools.simulate.scenarios import AD_TYPES
from gr4ad_tools.simulate.vocabulary import FILLER, PRICE_TIERS, STYLES, TOPICS, brand_names, related_topics

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CREATIVES_PER_PRODUCT = 1.6
BRANDS_PER_ACCOUNT = 2
MAIN_TOPIC_SHARE = (0.7, 1.0)
STYLE_NOISE = 0.35
PRICE_SPREAD = 0.6  # standard deviation of the log price inside a topic


@dataclass(frozen=True)
class Creatives:
    """Creatives of a market.

    Attributes:
        topics_C2: Main and second topic.
        topic_weights_C2: Their weights, summing to 1.
        style_CY: Unit vectors over the styles.
        quality_C: Standard normal.
        price_C: Price in units of the currency.
        price_rank_C: Rank of the price inside its topic, 0 to 1.
        product_C: Product shown.
        account_C: Account that owns it.
        ad_type_C: Index into AD_TYPES.
        titles: Titles.
        brands: Brands.
        categories: Category paths.
        descriptions: Descriptions.
    """

    topics_C2: IntArray
    topic_weights_C2: NDArray[np.float32]
    style_CY: NDArray[np.float32]
    quality_C: FloatArray
    price_C: FloatArray
    price_rank_C: FloatArray
    product_C: IntArray
    account_C: IntArray
    ad_type_C: IntArray
    titles: list[str]
    brands: list[str]
    categories: list[list[str]]
    descriptions: list[str]

    def topic_matrix(self) -> NDArray[np.float32]:
        """Return the topic mixtures as a dense matrix, [C, K]."""
        matrix = np.zeros((len(self.titles), len(TOPICS)), dtype=np.float32)
        rows = np.arange(len(self.titles))[:, None]
        np.add.at(matrix, (rows, self.topics_C2), self.topic_weights_C2)
        return matrix


def make_creatives(account_C: IntArray, rng: np.random.Generator) -> Creatives:
    """Draw the creatives of accounts.

    Args:
        account_C: Account of each creative to make.
        rng: Source of every choice.
    """
    n = len(account_C)
    n_accounts = int(account_C.max()) + 1
    # A product is a set of an account's creatives: same topics, same brand, same price.
    product_C = _products(account_C, rng)
    n_products = int(product_C.max()) + 1
    account_P = np.zeros(n_products, dtype=np.int64)
    account_P[product_C] = account_C
    home_A = rng.integers(0, len(TOPICS), n_accounts)
    main_P = np.where(rng.random(n_products) < 0.6, home_A[account_P], rng.integers(0, len(TOPICS), n_products))
    second_P = np.array([rng.choice(related_topics(int(topic))) for topic in main_P])
    rank_P = rng.random(n_products)
    level_K = rng.normal(3.0, 0.8, len(TOPICS))
    price_P: FloatArray = np.exp(level_K[main_P] + PRICE_SPREAD * _normal_quantile(rank_P))

    main_share = rng.uniform(*MAIN_TOPIC_SHARE, n)
    style_CY = np.eye(len(STYLES))[rng.integers(0, len(STYLES), n)] + STYLE_NOISE * rng.normal(size=(n, len(STYLES)))
    style_CY /= np.linalg.norm(style_CY, axis=1, keepdims=True)
    names = brand_names(n_accounts * BRANDS_PER_ACCOUNT, rng)
    brand_P = account_P * BRANDS_PER_ACCOUNT + rng.integers(0, BRANDS_PER_ACCOUNT, n_products)
    brands = [names[brand] for brand in brand_P[product_C]]
    noun_P = rng.integers(0, 1 << 30, n_products)
    texts = [
        _text(
            (int(main_P[product]), int(second_P[product])),
            float(main_share[creative]),
            int(style_CY[creative].argmax()),
            float(rank_P[product]),
            int(noun_P[product]),
            brands[creative],
            rng,
        )
        for creative, product in enumerate(product_C)
    ]
    favoured_A = rng.integers(0, len(AD_TYPES), n_accounts)
    ad_type_C = np.where(rng.random(n) < 0.6, favoured_A[account_C], rng.integers(0, len(AD_TYPES), n))
    return Creatives(
        topics_C2=np.stack([main_P, second_P], axis=1)[product_C],
        topic_weights_C2=np.stack([main_share, 1.0 - main_share], axis=1).astype(np.float32),
        style_CY=style_CY.astype(np.float32),
        quality_C=rng.normal(size=n),
        price_C=np.round(price_P, 2)[product_C],
        price_rank_C=rank_P[product_C],
        product_C=product_C,
        account_C=account_C,
        ad_type_C=ad_type_C,
        titles=[title for title, _ in texts],
        brands=brands,
        categories=[[TOPICS[main_P[p]].department, TOPICS[main_P[p]].name] for p in product_C],
        descriptions=[description for _, description in texts],
    )


def _products(account_C: IntArray, rng: np.random.Generator) -> IntArray:
    """Return a product for each creative; creatives of one product belong to one account."""
    slots_A = np.maximum(1, np.round(np.bincount(account_C) / CREATIVES_PER_PRODUCT).astype(np.int64))
    slot_C = (rng.random(len(account_C)) * slots_A[account_C]).astype(np.int64)
    key_C = account_C * int(slots_A.max()) + slot_C
    return np.asarray(np.unique(key_C, return_inverse=True)[1], dtype=np.int64)


def _text(
    topics: tuple[int, int], main_share: float, style: int, price_rank: float, noun: int, brand: str,
    rng: np.random.Generator,
) -> tuple[str, str]:  # fmt: skip
    main, second = TOPICS[topics[0]], TOPICS[topics[1]]
    product = main.products[noun % len(main.products)]
    style_word = str(rng.choice(STYLES[style]))
    attribute = str(rng.choice(main.attributes))
    title = f"{brand} {style_word.capitalize()} {attribute.capitalize()} {product.title()}"
    words = [
        str(rng.choice((main if rng.random() < main_share else second).attributes + main.products)) for _ in range(6)
    ]
    words += [str(word) for word in rng.choice(STYLES[style], 2)]
    words += [PRICE_TIERS[min(int(price_rank * len(PRICE_TIERS)), len(PRICE_TIERS) - 1)]]
    words += [str(word) for word in rng.choice(FILLER, 4)]
    rng.shuffle(words)
    return title, f"{product.capitalize()} by {brand}: {', '.join(words)}."


def _normal_quantile(p: FloatArray) -> FloatArray:
    return np.asarray(ndtri(np.clip(p, 1e-4, 1 - 1e-4)))
