from gr4ad_core.sid.business_code import BusinessSignals
from sid_assigner.ads import make_ad


def test_business_signals_are_what_the_caller_stated_or_the_defaults() -> None:
    assert make_ad(ad_id="a").signals == BusinessSignals("purchase", "product", "a", "a")
    stated = make_ad(ad_id="a", ad_type="external", conversion_type="lead", brand="acme", advertiser_id="agency")
    assert stated.signals == BusinessSignals("lead", "external", "agency", "a")
