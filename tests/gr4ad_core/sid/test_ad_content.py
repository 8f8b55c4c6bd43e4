from dataclasses import replace

import pytest
from gr4ad_core.learning.item_lines import AD_TYPES as FOLDER_AD_TYPES
from gr4ad_core.sid.ad_content import AD_TYPES, AdContent, render

AD = AdContent("Red lipstick", "Rouge", ("Beauty", "Lips"), "Lasts all day.", "acme", "product")


def test_each_ad_type_has_its_own_template() -> None:
    assert set(AD_TYPES) == set(FOLDER_AD_TYPES)
    texts = {render(replace(AD, ad_type=ad_type)) for ad_type in AD_TYPES}
    assert len(texts) == 6


@pytest.mark.parametrize("part", ["Red lipstick", "Rouge", "Beauty > Lips", "Lasts all day.", "acme"])
def test_every_field_is_rendered(part: str) -> None:
    for ad_type in AD_TYPES:
        assert part in render(replace(AD, ad_type=ad_type))


def test_empty_fields_leave_no_line() -> None:
    bare = AdContent("", " ", ("", " "), "", "", "short_video")
    assert render(bare).count("\n") == 0
    assert render(replace(bare, title="Clip")).splitlines()[1:] == ["Title: Clip"]


def test_an_account_that_repeats_the_brand_is_rendered_once() -> None:
    assert render(replace(AD, advertiser_id="Rouge")).count("Rouge") == 1


def test_refuses_an_unknown_ad_type() -> None:
    with pytest.raises(ValueError, match="ad_type: 'banner': use one of short_video, live_stream"):
        render(replace(AD, ad_type="banner"))
