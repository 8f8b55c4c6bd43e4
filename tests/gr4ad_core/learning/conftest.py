"""A small world: users who buy in topics, and ads whose first code is the topic."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gr4ad_core.learning.data_folder import Interactions
from gr4ad_core.learning.sampling import AdTable, TrainingSet

LEVEL_SIZES = (6, 5, 4)


def topic_ads() -> AdTable:
    """60 ads, ten of each topic, every SID different, two kinds of conversion."""
    sids = np.array([[topic, i % 5, i // 5] for topic in range(6) for i in range(10)], np.int64)
    return AdTable(
        ad_ids=[f"ad-{i}" for i in range(60)],
        sids=sids,
        bid_micros=np.arange(60, dtype=np.int64) * 10_000 + 100_000,
        conversion_types=["click" if i % 2 else "purchase" for i in range(60)],
    )


def topic_interactions(n_users: int = 150, seed: int = 0) -> Interactions:
    """Every user stays in one topic and walks through its ads in order, so the next ad can be learned."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 9, n_users)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    items = np.concatenate([10 * rng.integers(6) + (rng.integers(10) + np.arange(n)) % 10 for n in lengths])
    return Interactions(
        user_ids=[f"user-{u}" for u in range(n_users)],
        offsets=offsets,
        item_ids=[f"ad-{i}" for i in range(60)],
        items=items.astype(np.int64),
        behaviors=rng.integers(1, 4, len(items)),
        timestamps=1.7e9 + np.arange(len(items)) * 3600.0,
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models this small lose more by handing work to a second thread than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ads() -> AdTable:
    """The ads."""
    return topic_ads()


@pytest.fixture
def training_set() -> TrainingSet:
    """Samples of the small world."""
    return TrainingSet.from_interactions(topic_interactions(), topic_ads())
