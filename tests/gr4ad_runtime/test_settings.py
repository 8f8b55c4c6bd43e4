from __future__ import annotations

import pytest
from gr4ad_runtime.settings import ServiceSettings, read_settings


@pytest.fixture(autouse=True)
def _no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServiceSettings.model_fields:
        monkeypatch.delenv(f"GR4AD_{name.upper()}", raising=False)


def test_defaults_serve_on_loopback_only() -> None:
    settings = read_settings(ServiceSettings)
    assert settings.host == "127.0.0.1"
    assert settings.otlp_endpoint == ""
    assert settings.sid_assigner_address == "127.0.0.1:50051"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR4AD_PORT", "50123")
    monkeypatch.setenv("GR4AD_TRACE_SAMPLE_RATIO", "0.25")
    settings = read_settings(ServiceSettings)
    assert (settings.port, settings.trace_sample_ratio) == (50123, 0.25)


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("GR4AD_PORT", "65536", "less than or equal to 65535"),
        ("GR4AD_PORT", "http", "valid integer"),
        ("GR4AD_TRACE_SAMPLE_RATIO", "1.5", "less than or equal to 1"),
        ("GR4AD_LOG_LEVEL", "LOUD", "'DEBUG'"),
        ("GR4AD_DRAIN_SECONDS", "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str, rule: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        read_settings(ServiceSettings)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"{variable}: {value}: " in said
    assert rule in said


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ServiceSettings().port = 1
