import itertools

import pytest
from gr4ad_core.sid.ad_content import AD_TYPES
from gr4ad_core.sid.business_code import CONVERSION_TYPES, BusinessLevel, BusinessSignals
from hypothesis import given, settings
from hypothesis import strategies as st

EXPECTED_HOME = 114170
BOTH = ("conversion_type", "ad_type")

ads = st.builds(
    BusinessSignals,
    st.sampled_from(CONVERSION_TYPES),
    st.sampled_from(AD_TYPES),
    st.text(max_size=8),
    st.text(max_size=8),
)
levels = st.one_of(
    st.builds(BusinessLevel, st.integers(1, 100)),
    st.builds(BusinessLevel, st.integers(64, 300), st.permutations(BOTH).map(tuple)),
)


def ad(conversion_type: str = "purchase", ad_type: str = "product", product_id: str = "p1") -> BusinessSignals:
    return BusinessSignals(conversion_type, ad_type, "acme", product_id)


@settings(max_examples=50)
@given(ads, levels)
def test_probing_tries_every_code_once_home_first_and_its_bucket_before_others(
    one: BusinessSignals, level: BusinessLevel
) -> None:
    codes = list(level.probe_codes(one))
    bucket = level.bucket_of(one)
    assert sorted(codes) == list(range(level.size))
    assert codes[0] == level.home_code(one)
    assert sorted(codes[: len(bucket)]) == list(bucket)


@given(ads, st.integers(3, 12))
def test_high_bits_are_the_conversion_type_whatever_account_and_product(one: BusinessSignals, bits: int) -> None:
    home = BusinessLevel(1 << bits).home_code(one)
    assert home >> bits - 3 == CONVERSION_TYPES.index(one.conversion_type)


@given(ads, st.integers(6, 12))
def test_high_bits_are_all_configured_signals_in_their_order(one: BusinessSignals, bits: int) -> None:
    home = BusinessLevel(1 << bits, ("ad_type", "conversion_type")).home_code(one)
    assert home >> bits - 3 == AD_TYPES.index(one.ad_type)
    assert home >> bits - 6 & 7 == CONVERSION_TYPES.index(one.conversion_type)


@given(ads, st.integers(6, 10))
def test_who_leaves_a_full_bucket_keeps_its_first_signal_as_long_as_there_is_room(
    one: BusinessSignals, bits: int
) -> None:
    codes = list(BusinessLevel(1 << bits, BOTH).probe_codes(one))
    alike = [code >> bits - 3 == CONVERSION_TYPES.index(one.conversion_type) for code in codes]
    assert alike == [True] * (1 << bits - 3) + [False] * (7 << bits - 3)


def test_values_have_buckets_of_their_own() -> None:
    for level in (*map(BusinessLevel, (8, 9, 64, 100)), BusinessLevel(64, BOTH), BusinessLevel(200, BOTH)):
        kinds = AD_TYPES if "ad_type" in level.signals else AD_TYPES[:1]
        every = [ad(kind, ad_type) for kind in CONVERSION_TYPES for ad_type in kinds]
        for one, other in itertools.combinations(every, 2):
            assert not set(level.bucket_of(one)) & set(level.bucket_of(other))


def test_products_spread_over_the_low_bits() -> None:
    codes = [BusinessLevel(64).home_code(ad(product_id=f"p{number}")) for number in range(800)]
    assert {code >> 3 for code in codes} == {2}
    counts = [codes.count(code) for code in range(16, 24)]
    assert min(counts) > 60


def test_code_stays_the_same_over_processes_and_releases() -> None:
    # Codes are stored with ads for ever, so that a change of the hash would move SIDs.
    level = BusinessLevel(1 << 20)
    assert level.home_code(BusinessSignals("click", "product", "acme", "p1")) == EXPECTED_HOME
    assert level.home_code(BusinessSignals("click", "product", "acmep", "1")) != EXPECTED_HOME


def test_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="conversion_type: 'view': use one of click, install"):
        BusinessLevel(64).home_code(ad("view"))
    with pytest.raises(ValueError, match="ad_type: 'poster': use one of short_video"):
        BusinessLevel(64, BOTH).home_code(ad(ad_type="poster"))
    with pytest.raises(ValueError, match="level_sizes: 0 business codes: give the last level 1 or more"):
        BusinessLevel(0)
    with pytest.raises(
        ValueError, match="level_sizes: 32 business codes: give the last level 64 or more for conversion"
    ):
        BusinessLevel(32, BOTH)
    for signals in ((), ("bid",), ("ad_type", "ad_type")):
        with pytest.raises(ValueError, match=r"business_signals: .*: give some of conversion_type, ad_type, each once"):
            BusinessLevel(64, signals)
