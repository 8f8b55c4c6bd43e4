"""The codebook on real ads: a third of Amazon Beauty, to keep the test short."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gr4ad_core.learning.data_folder import read_items
from gr4ad_core.metrics.sid_quality import sid_quality
from gr4ad_core.sid.ad_content import AdContent, render
from gr4ad_core.sid.business_code import BusinessLevel, BusinessSignals
from gr4ad_core.sid.codebook import CodebookConfig, default_level_sizes, fit_codebook
from gr4ad_core.sid.text_encoder import TextEncoder

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "amazon_beauty_2014"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no folder ../shared/data/amazon_beauty_2014 beside the repository")
def test_tells_real_ads_apart() -> None:
    items = read_items(FOLDER)[::3]
    sizes = default_level_sizes(len(items))
    config = CodebookConfig(level_sizes=sizes)
    texts = [
        render(AdContent(i.title, i.brand, i.categories, i.description, i.advertiser_id, i.ad_type)) for i in items
    ]
    encoder = TextEncoder.fit(texts, config.embedding_dim, 0)
    vectors = encoder.encode(texts)
    codebook = fit_codebook(vectors, config, encoder)
    signals = [BusinessSignals(i.conversion_type, i.ad_type, i.advertiser_id, i.item_id) for i in items]
    sids = codebook.assign(vectors, signals, lambda prefix: set())

    quality = sid_quality(sids, sizes)
    assert (quality.cpr, quality.col) == (1.0, 0.0)
    # Creatives are told apart by content; business codes only finish the job, in their own bucket.
    assert sid_quality(sids[:, :2], sizes[:2]).cpr < 1.5
    bucket = BusinessLevel(sizes[2]).bucket_of(signals[0])
    assert ((sids[:, 2] >= bucket.start) & (sids[:, 2] < bucket.stop)).mean() > 0.99
    # Codes are used evenly, although ads take the nearest centroid.
    first = np.bincount(sids[:, 0], minlength=sizes[0])
    assert first.max() <= 3 * len(items) / sizes[0]
    assert (first > 0).mean() > 0.99
    # A first code means something: ads that share it share the third level of the category path.
    paths = [item.categories[:3] for item in items]
    order = np.argsort(sids[:, 0], kind="stable")
    neighbours = [(a, b) for a, b in pairwise(order.tolist()) if sids[a, 0] == sids[b, 0]]
    assert np.mean([paths[a] == paths[b] for a, b in neighbours]) > 0.5
