import itertools
from pathlib import Path

import numpy as np
import pytest
from gr4ad_core.sid.ad_content import AdContent, render
from gr4ad_core.sid.business_code import CONVERSION_TYPES, BusinessLevel, BusinessSignals
from gr4ad_core.sid.codebook import (
    Codebook,
    CodebookConfig,
    CodebookFullError,
    default_level_sizes,
    fit_codebook,
    save_codebook,
)
from gr4ad_core.sid.text_encoder import TextEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import mgmr as oracle

DIM = 6
FREE = lambda prefix: set()  # noqa: E731 - the shape of `taken`, named


def vectors(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def signals(n: int) -> list[BusinessSignals]:
    return [
        BusinessSignals(CONVERSION_TYPES[number % 5], "product", f"account {number % 3}", f"ad {number}")
        for number in range(n)
    ]


def fit(sizes: tuple[int, ...], n: int = 60, seed: int = 0) -> Codebook:
    return fit_codebook(vectors(n), CodebookConfig(level_sizes=sizes, embedding_dim=DIM, seed=seed, iterations=3))


CODEBOOKS = {sizes: fit(sizes) for sizes in ((4, 3, 8), (5, 16), (3, 2, 2, 8))}
sizes_of = st.sampled_from(list(CODEBOOKS))


@given(sizes_of, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_quantises_like_one_ad_at_a_time(sizes: tuple[int, ...], seed: int) -> None:
    codebook, sample = CODEBOOKS[sizes], vectors(12, seed)
    found = [tuple(prefix) for prefix in codebook.quantise(sample).tolist()]
    assert found == [oracle.nearest_prefix(codebook.levels, vector) for vector in sample]


@given(sizes_of, st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_all_prefixes_come_nearest_first(sizes: tuple[int, ...], seed: int) -> None:
    codebook, sample = CODEBOOKS[sizes], vectors(2, seed)
    for vector, found in zip(sample, codebook.nearest_codes(sample, 1000).tolist(), strict=True):
        lengths = [oracle.left_over(codebook.levels, vector, tuple(prefix)) for prefix in found]
        np.testing.assert_allclose(lengths, sorted(lengths), atol=1e-4)
        assert sorted(map(tuple, found)) == sorted(oracle.prefixes_by_length(codebook.levels, vector))


def test_one_alternative_is_the_quantised_prefix() -> None:
    codebook, sample = CODEBOOKS[4, 3, 8], vectors(20, 1)
    np.testing.assert_array_equal(codebook.nearest_codes(sample, 1)[:, 0], codebook.quantise(sample))


@given(st.integers(0, 99), st.integers(1, 60), st.dictionaries(st.integers(0, 3), st.sets(st.integers(0, 31))))
@settings(max_examples=25, deadline=None)
def test_assigns_like_one_ad_at_a_time(seed: int, n: int, used: dict[int, set[int]]) -> None:
    codebook = fit_codebook(vectors(30), CodebookConfig(level_sizes=(4, 3, 128), embedding_dim=DIM, iterations=2))

    def taken(prefix: tuple[int, ...]) -> set[int]:
        return used.get(prefix[0], set())

    sids = codebook.assign(vectors(n, seed), signals(n), taken)
    expected = oracle.assign(codebook.levels, codebook.business, vectors(n, seed), signals(n), taken)
    assert [tuple(sid) for sid in sids.tolist()] == expected


@given(sizes_of, st.integers(0, 9), st.data())
@settings(max_examples=15, deadline=None)
def test_never_gives_a_sid_twice_until_all_are_taken(sizes: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    codebook = CODEBOOKS[sizes]
    every = set(itertools.product(*map(range, sizes)))
    gone = data.draw(st.sets(st.sampled_from(sorted(every)), max_size=20))
    free = len(every) - len(gone)
    asked: list[tuple[int, ...]] = []

    def taken(prefix: tuple[int, ...]) -> set[int]:
        asked.append(prefix)
        return {sid[-1] for sid in gone if sid[:-1] == prefix}

    # Ads alike fill one prefix after the other.
    alike = np.repeat(vectors(1, seed), free, axis=0)
    sids = {tuple(sid) for sid in codebook.assign(alike, signals(free), taken).tolist()}
    assert sids == every - gone
    assert len(asked) == len(set(asked))
    with pytest.raises(CodebookFullError, match=f"all {len(every)} SIDs of codebook 'codebook' are taken"):
        codebook.assign(np.repeat(alike[:1], free + 1, axis=0), signals(free + 1), taken)


def test_spills_to_the_nearest_prefix_that_has_room() -> None:
    codebook, vector = CODEBOOKS[4, 3, 8], vectors(1, 5)
    order = oracle.prefixes_by_length(codebook.levels, vector[0])
    first = oracle.nearest_prefix(codebook.levels, vector[0])
    full = {first, *order[:4]}
    sid = codebook.assign(vector, signals(1), lambda prefix: set(range(8)) if prefix in full else set())[0].tolist()
    assert tuple(sid[:-1]) == next(prefix for prefix in order if prefix not in full)


def test_one_creative_with_five_conversion_types_differs_in_the_business_code_only() -> None:
    codebook = fit((4, 3, 64))
    campaigns = [BusinessSignals(kind, "product", "acme", "serum") for kind in CONVERSION_TYPES]
    sids = codebook.assign(np.repeat(vectors(1), 5, axis=0), campaigns, FREE)
    assert len({tuple(prefix) for prefix in sids[:, :-1].tolist()}) == 1
    for campaign, sid in zip(campaigns, sids.tolist(), strict=True):
        assert sid[-1] in BusinessLevel(64).bucket_of(campaign)


def test_collisions_move_to_the_next_free_code_in_probing_order() -> None:
    codebook = fit((4, 3, 64))
    alike = [BusinessSignals("lead", "product", "acme", "serum")] * 10
    sids = codebook.assign(np.repeat(vectors(1), 10, axis=0), alike, FREE)
    assert sids[:, -1].tolist() == list(itertools.islice(BusinessLevel(64).probe_codes(alike[0]), 10))


def test_leaves_what_the_callback_returned_as_it_was() -> None:
    used: set[int] = set()
    CODEBOOKS[4, 3, 8].assign(vectors(3), signals(3), lambda prefix: used)
    assert used == set()


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        save_codebook(fit((8, 4, 8), seed=seed), tmp_path / name)
    for file in ("codebook.npz", "manifest.json"):
        first, again, other = ((tmp_path / name / file).read_bytes() for name in ("first", "again", "other"))
        assert first == again
        assert first != other


def test_encodes_ads_by_their_templates() -> None:
    ads = [AdContent(f"serum {n}", "acme", ("Beauty",), "", "acme", "product") for n in range(9)]
    texts = [render(ad) for ad in ads]
    encoder = TextEncoder.fit(texts, DIM, 0)
    codebook = fit_codebook(
        encoder.encode(texts), CodebookConfig(level_sizes=(2, 2, 8), embedding_dim=DIM), encoder, "texts"
    )
    np.testing.assert_array_equal(codebook.encode_ads(ads), encoder.encode(texts))
    with pytest.raises(
        ValueError, match="embedding: empty: codebook 'codebook' has no text encoder, send vectors of 6"
    ):
        CODEBOOKS[4, 3, 8].encode_ads(ads)


@pytest.mark.parametrize("n_ads", [1, 11, 200, 2_000, 12_101, 100_000, 1_000_000])
def test_default_levels_shrink_and_leave_room(n_ads: int) -> None:
    first, second, business = default_level_sizes(n_ads)
    assert first > second >= business == 64
    assert first * second >= 10 * n_ads


def bad(row: int, column: int, value: float) -> np.ndarray:
    sample = vectors(3)
    sample[row, column] = value
    return sample


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (bad(1, 4, np.nan), r"embeddings\[1\]\[4\]: nan: give finite numbers"),
        (bad(2, 0, -np.inf), r"embeddings\[2\]\[0\]: -inf: give finite numbers"),
        (np.zeros((3, DIM - 1)), r"embeddings: shape \(3, 5\): give vectors of 6 numbers"),
        (np.zeros(DIM), r"embeddings: shape \(6,\): give vectors of 6 numbers"),
    ],
)
def test_refuses_unusable_vectors(sample: np.ndarray, message: str) -> None:
    codebook = CODEBOOKS[4, 3, 8]
    with pytest.raises(ValueError, match=message):
        codebook.quantise(sample)
    with pytest.raises(ValueError, match=message):
        codebook.nearest_codes(sample, 2)
    with pytest.raises(ValueError, match=message):
        codebook.assign(sample, signals(3), FREE)
    with pytest.raises(ValueError, match=message):
        fit_codebook(sample, CodebookConfig(level_sizes=(2, 8), embedding_dim=DIM))


def test_refuses_what_does_not_belong_together() -> None:
    codebook = CODEBOOKS[4, 3, 8]
    with pytest.raises(ValueError, match="signals: 2 for 3 vectors: give one for each"):
        codebook.assign(vectors(3), signals(2), FREE)
    with pytest.raises(ValueError, match="n: 0: ask for at least one prefix"):
        codebook.nearest_codes(vectors(1), 0)
    config = CodebookConfig(level_sizes=(2, 8), embedding_dim=DIM)
    with pytest.raises(ValueError, match=r"encoder\.dim: 4: must be embedding_dim 6"):
        fit_codebook(vectors(9), config, TextEncoder.fit(["a"], 4, 0))
    with pytest.raises(ValueError, match="embeddings: empty: give at least one vector"):
        fit_codebook(vectors(0), config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"level_sizes": (8,)}, r"level_sizes: \(8,\): .* two or more levels"),
        ({"level_sizes": (8, 0)}, r"level_sizes: \(8, 0\): give a positive size"),
        ({"embedding_dim": 0}, "embedding_dim: 0: give a positive number"),
        ({"iterations": 0}, "iterations: 0: give a positive number"),
        ({"seed": -1}, "seed: -1: give 0 or more"),
    ],
)
def test_refuses_a_config_out_of_range(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodebookConfig(**{"level_sizes": (4, 8), **values})


def test_refuses_a_catalogue_of_no_ads() -> None:
    with pytest.raises(ValueError, match="n_ads: 0: give the number of ads"):
        default_level_sizes(0)
