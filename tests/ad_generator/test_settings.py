"""The generator's settings: what they accept and how they refuse."""

from __future__ import annotations

import pytest
from ad_generator.settings import AdGeneratorSettings
from pydantic import ValidationError


def test_widths_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR4AD_BEAM_WIDTHS", "8-16-256")
    assert AdGeneratorSettings().beam_widths == (8, 16, 256)


def test_the_defaults_are_those_of_the_documents() -> None:
    settings = AdGeneratorSettings()
    assert (settings.beam_widths, settings.value_weight) == ((32, 64, 128), 1.0)
    assert (settings.beam_scale_min, settings.beam_scale_max) == (0.25, 1.6)
    assert (settings.port, settings.rest_port, settings.host) == (50052, 0, "127.0.0.1")
    assert (settings.currency, settings.bid_margin_us) == ("USD", 20_000)


@pytest.mark.parametrize("widths", ["", "32-", "32,64", "0-1-2", "5000", "1-2-3-4-5-6-7-8-9", "-3"])
def test_wrong_widths_are_refused_with_an_example(widths: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR4AD_BEAM_WIDTHS", widths)
    with pytest.raises(ValidationError, match="one per SID level|one width per SID level"):
        AdGeneratorSettings()


def test_int8_is_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR4AD_COMPUTE_TYPE", "int8")
    assert AdGeneratorSettings().compute_type == "int8"
    monkeypatch.setenv("GR4AD_DEVICE", "cuda")
    with pytest.raises(ValidationError, match="int8 on cuda: give bfloat16, int8 is for the device cpu"):
        AdGeneratorSettings()
    monkeypatch.setenv("GR4AD_COMPUTE_TYPE", "int4")
    with pytest.raises(ValidationError, match="'float32', 'bfloat16' or 'int8'"):
        AdGeneratorSettings()


def test_a_currency_is_three_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR4AD_CURRENCY", "Euro")
    with pytest.raises(ValidationError, match="currency"):
        AdGeneratorSettings()


def test_a_channel_of_odd_letters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR4AD_CHANNEL", "No Such")
    with pytest.raises(ValidationError, match="channel"):
        AdGeneratorSettings()


@pytest.mark.parametrize(("name", "value"), [("MIN", "0"), ("MIN", "1.1"), ("MAX", "0.9"), ("MAX", "9")])
def test_scales_that_do_not_hold_the_policys_own_widths_are_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"GR4AD_BEAM_SCALE_{name}", value)
    with pytest.raises(ValidationError, match=f"beam_scale_{name.lower()}"):
        AdGeneratorSettings()
