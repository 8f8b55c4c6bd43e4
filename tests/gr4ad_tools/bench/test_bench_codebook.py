"""The comparison of tokenisers: the catalogue it makes, the baselines, and what it reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gr4ad_tools.bench import app
from gr4ad_tools.bench.ad_vectors import generated_catalogue
from gr4ad_tools.bench.codebook import Catalogue, measure, short_number
from gr4ad_tools.bench.tokenisers import Hashing, RqKmeans, equal_sizes, lloyd
from typer.testing import CliRunner

SIZES = (64, 32, 16)


def test_the_catalogue_has_shared_creatives_and_heavy_tailed_accounts() -> None:
    ads = generated_catalogue(20_000, seed=1, dim=16)
    assert ads.vectors_ND.shape == (20_000, 16)
    np.testing.assert_allclose(np.linalg.norm(ads.vectors_ND, axis=1), 1.0, atol=1e-5)
    _, ads_per_creative = np.unique(ads.vectors_ND, axis=0, return_counts=True)
    assert 0.3 < ads_per_creative[ads_per_creative > 1].sum() / 20_000 < 0.8
    accounts = np.unique(ads.advertiser_ids, return_counts=True)[1]
    assert np.sort(accounts)[::-1][: len(accounts) // 100].sum() > 0.2 * 20_000
    assert np.bincount(ads.conversion_types_N).min() > 0.05 * 20_000
    again = generated_catalogue(20_000, seed=1, dim=16)
    np.testing.assert_array_equal(again.vectors_ND, ads.vectors_ND)
    assert again.product_ids == ads.product_ids


def test_creatives_of_a_topic_are_near_each_other() -> None:
    ads = generated_catalogue(4_000, seed=2, dim=64)
    vectors = np.unique(ads.vectors_ND, axis=0)
    cosines = vectors @ vectors.T - np.eye(len(vectors))
    assert np.quantile(cosines.max(axis=1), 0.5) > 0.5
    assert abs(cosines.mean()) < 0.1


def test_ours_tells_ads_apart_that_plain_residual_kmeans_cannot() -> None:
    catalogue = Catalogue(None, 4_000, SIZES, seed=0)
    found = {name: measure(name, catalogue) for name in ("mgmr", "rq_equal", "hash")}
    assert found["mgmr"]["cpr"]["value"] == 1.0
    assert found["mgmr"]["col"]["value"] == 0.0
    assert found["rq_equal"]["col"]["value"] > 0.3  # campaigns of one creative
    assert found["mgmr"]["util"]["value"] == max(each["util"]["value"] for each in found.values())
    assert found["mgmr"]["assign_ads_per_s"]["n"] == 400
    assert found["hash"]["cpr"]["n"] == 4_000
    assert all(each["fit_peak_gib"]["value"] > 0.01 for each in found.values())


def test_lloyds_centroids_are_the_means_of_what_is_nearest_to_them() -> None:
    rng = np.random.default_rng(3)
    points = np.concatenate([rng.normal(centre, 0.05, (50, 4)) for centre in (0.0, 1.0, 2.0)]).astype(np.float32)
    centroids = lloyd(points, 3, seed=0)
    nearest = np.linalg.norm(points[:, None] - centroids, axis=-1).argmin(axis=1)
    for k in range(3):
        np.testing.assert_allclose(centroids[k], points[nearest == k].mean(axis=0), atol=1e-5)


def test_residual_levels_quantise_what_the_level_before_left() -> None:
    ads = generated_catalogue(1_000, seed=4, dim=8)
    tokeniser = RqKmeans((8, 8))
    tokeniser.fit(ads, seed=0)
    sids = tokeniser.assign(ads, range(20))
    for row, sid in enumerate(sids):
        left = ads.vectors_ND[row]
        for level, code in enumerate(sid):
            distance = np.linalg.norm(tokeniser._levels[level] - left, axis=1)
            assert distance[code] == pytest.approx(distance.min(), abs=1e-5)
            left = left - tokeniser._levels[level][code]


def test_hashes_are_spread_over_all_levels() -> None:
    ads = generated_catalogue(1_000, seed=5, dim=4)
    sids = Hashing((16, 16, 16)).assign(ads, range(1_000))
    for level in range(3):
        assert np.bincount(sids[:, level], minlength=16).min() > 30


@pytest.mark.parametrize(("sizes", "equal"), [((4096, 1024, 256), (1024,) * 3), ((8, 4), (6, 6)), ((5,), (5,))])
def test_equal_levels_hold_as_many_sids_or_just_more(sizes: tuple[int, ...], equal: tuple[int, ...]) -> None:
    assert equal_sizes(sizes) == equal


def test_figures_are_named_by_the_number_of_ads() -> None:
    assert [short_number(count) for count in (1_000_000, 20_000, 1_234)] == ["1m", "20k", "1234"]


def test_the_command_prints_figures_and_keeps_them(tmp_path: Path) -> None:
    arguments = ["codebook", "--ads", "2000", "--level-sizes", "64,32,16", "--only", "mgmr", "--only", "hash", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    names = ("cpr", "col", "util", "fit_seconds", "fit_assign_seconds", "fit_peak_gib", "assign_ads_per_s")
    assert set(document["figures"]) == {f"{tokeniser}_{name}_2k" for tokeniser in ("mgmr", "hash") for name in names}
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == document


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "magic"], "--only: magic: choose of mgmr, rq_equal, rqvae, hash"),
        (["--level-sizes", "a,b"], "level_sizes: a,b: give whole numbers with commas"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["codebook", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
