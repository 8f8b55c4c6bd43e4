import itertools

import pytest
from gr4ad_core.sid.business_code import CONVERSION_TYPES, BusinessSignals, bucket_of, home_code, probe_codes
from hypothesis import given, settings
from hypothesis import strategies as st

EXPECTED_HOME = 114170

signals = st.builds(BusinessSignals, st.sampled_from(CONVERSION_TYPES), st.text(max_size=8), st.text(max_size=8))
sizes = st.integers(1, 100)


@settings(max_examples=50)
@given(signals, sizes)
def test_probing_tries_every_code_once_home_first_and_its_bucket_before_others(
    signal: BusinessSignals, size: int
) -> None:
    codes = list(probe_codes(signal, size))
    bucket = bucket_of(signal.conversion_type, size)
    assert sorted(codes) == list(range(size))
    assert codes[0] == home_code(signal, size)
    assert sorted(codes[: len(bucket)]) == list(bucket)


@given(signals, st.integers(3, 12))
def test_high_bits_are_the_conversion_type_whatever_account_and_product(signal: BusinessSignals, bits: int) -> None:
    shift = bits - 3
    assert home_code(signal, 1 << bits) >> shift == CONVERSION_TYPES.index(signal.conversion_type)


def test_conversion_types_have_buckets_of_their_own() -> None:
    for size in (8, 9, 64, 100):
        for one, other in itertools.combinations(CONVERSION_TYPES, 2):
            assert not set(bucket_of(one, size)) & set(bucket_of(other, size))


def test_products_spread_over_the_low_bits() -> None:
    codes = [home_code(BusinessSignals("purchase", "acme", f"p{number}"), 64) for number in range(800)]
    assert {code >> 3 for code in codes} == {2}
    counts = [codes.count(code) for code in range(16, 24)]
    assert min(counts) > 60


def test_code_stays_the_same_over_processes_and_releases() -> None:
    # Codes are stored with ads for ever, so that a change of the hash would move SIDs.
    assert home_code(BusinessSignals("click", "acme", "p1"), 1 << 20) == EXPECTED_HOME
    assert home_code(BusinessSignals("click", "acmep", "1"), 1 << 20) != EXPECTED_HOME


def test_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="conversion_type: 'view': use one of click, install"):
        home_code(BusinessSignals("view", "", ""), 64)
    with pytest.raises(ValueError, match="size: 0: give the business level at least one code"):
        home_code(BusinessSignals("click", "", ""), 0)
