"""The chart renders with real Helm, fits the schemas, and agrees with the services it deploys."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.charts.chart import CHART, CRDS, HELM, HelmError, check, container, environment, render

EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
MINIMAL = CHART / "examples" / "minimal.yaml"
SETTINGS = {
    "sid-assigner": ("sid_assigner.settings", "SidAssignerSettings"),
    "ad-generator": ("ad_generator.settings", "AdGeneratorSettings"),
    "reward-logger": ("reward_logger.settings", "RewardLoggerSettings"),
    "rspo-trainer": ("rspo_trainer.settings", "RspoTrainerSettings"),
}
needs_crds = pytest.mark.skipif(
    not CRDS.exists(), reason="the schemas of custom resources are not beside this checkout"
)
pytestmark = pytest.mark.skipif(not HELM.exists(), reason="helm is not installed: make .venv/bin/helm")


def component(manifest: dict[str, Any]) -> str:
    return str(manifest["metadata"]["labels"]["app.kubernetes.io/component"])


def workloads(*values: Path, **overrides: str) -> dict[str, dict[str, Any]]:
    manifests = render(*values, **overrides)
    return {component(m): m for m in manifests if m["kind"] in {"Deployment", "InferenceService"}}


@needs_crds
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_manifest_of_every_example_fits_its_schema(example: Path) -> None:
    manifests = render(example)
    for manifest in manifests:
        check(manifest)
    assert {component(m) for m in manifests} == set(SETTINGS)


@needs_crds
def test_the_check_refuses_what_an_api_server_refuses() -> None:
    manifests = {m["kind"]: m for m in render(MINIMAL)}
    deployment = copy.deepcopy(manifests["Deployment"])
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        check(deployment)
    service = copy.deepcopy(manifests["InferenceService"])
    service["spec"]["predictor"]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        check(service)
    with pytest.raises(ValueError, match="no schema"):
        check({"apiVersion": "example.com/v1", "kind": "Thing"})


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_in_a_pod_is_one_that_its_service_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, cls = SETTINGS[name]
    settings = getattr(importlib.import_module(module), cls)
    env = environment(workloads(MINIMAL)[name])
    fields = {f"GR4AD_{field.upper()}" for field in settings.model_fields}
    assert {key for key in env if key.startswith("GR4AD_")} <= fields
    for key, value in env.items():
        monkeypatch.setenv(key, value if isinstance(value, str) else "postgresql+psycopg://user@host/name")
    read = settings()
    assert (
        read.port == {"sid-assigner": 50051, "ad-generator": 50052, "reward-logger": 50053, "rspo-trainer": 50054}[name]
    )
    if name == "ad-generator":
        assert tuple(read.beam_widths) == (128, 256, 512)
        assert (read.beam_scale_min, read.beam_scale_max) == (0.25, 1.6)


def test_addresses_in_pods_are_services_of_the_release() -> None:
    manifests = render(MINIMAL)
    served = {
        f"{m['metadata']['name']}:{port['port']}"
        for m in manifests
        if m["kind"] == "Service"
        for port in m["spec"]["ports"]
    }
    for manifest in workloads(MINIMAL).values():
        named = {value for key, value in environment(manifest).items() if key.endswith("_ADDRESS")}
        assert named
        assert named <= served


def test_pods_run_without_privileges_and_drain_within_their_grace() -> None:
    for manifest in workloads(MINIMAL).values():
        spec = (
            manifest["spec"]["predictor"]
            if manifest["kind"] == "InferenceService"
            else manifest["spec"]["template"]["spec"]
        )
        security = container(manifest)["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        pause = container(manifest)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert spec["terminationGracePeriodSeconds"] > pause + int(environment(manifest)["GR4AD_DRAIN_SECONDS"])
        assert spec["automountServiceAccountToken"] is False


def test_the_generator_is_what_kserve_takes_as_a_custom_predictor() -> None:
    generator = workloads(MINIMAL)["ad-generator"]
    assert generator["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    only = container(generator)
    assert only["name"] == "kserve-container"
    assert [port["name"] for port in only["ports"]] == ["h2c"]
    assert "STORAGE_URI" not in environment(generator)
    assert environment(workloads(MINIMAL, adGenerator__storageUri="s3://x")["ad-generator"])["STORAGE_URI"] == "s3://x"


def test_a_rest_port_is_reached_by_a_service_of_its_own() -> None:
    assert not [m for m in render(MINIMAL) if m["metadata"]["name"].endswith("-rest")]
    manifests = render(MINIMAL, adGenerator__restPort="8080", adGenerator__currency="EUR")
    for manifest in manifests:
        if manifest["kind"] == "Service":
            check(manifest)
    (generator,) = (m for m in manifests if m["kind"] == "InferenceService")
    (service,) = (m for m in manifests if m["metadata"]["name"] == "shop-ad-generator-rest")
    env = environment(generator)
    assert (env["GR4AD_REST_PORT"], env["GR4AD_CURRENCY"], env["GR4AD_BID_MARGIN_US"]) == ("8080", "EUR", "20000")
    assert service["spec"]["ports"] == [{"name": "http", "port": 8080, "targetPort": 8080}]
    assert service["spec"]["selector"].items() <= generator["spec"]["predictor"]["labels"].items()


def test_the_trainer_never_runs_twice() -> None:
    trainer = workloads(MINIMAL)["rspo-trainer"]
    assert trainer["spec"]["replicas"] == 1
    assert trainer["spec"]["strategy"] == {"type": "Recreate"}


def test_an_image_can_be_named_whole() -> None:
    pods = workloads(MINIMAL, sidAssigner__image="registry.local/sid@sha256:0")
    assert container(pods["sid-assigner"])["image"] == "registry.local/sid@sha256:0"
    assert container(pods["reward-logger"])["image"] == "ghcr.io/gr4ad/gr4ad-reward-logger:0.1.0"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sidAssigner__replicas": "0"}, "replicas"),
        ({"sidAssigner__replica": "2"}, "replica"),
        ({"adGenerator__channel": "Stable"}, "channel"),
        ({"adGenerator__currency": "Euro"}, "currency"),
        ({"telemetry__sampleRatio": "2"}, "sampleRatio"),
        ({"logLevel": "LOUD"}, "logLevel"),
        ({"database__existingSecret": ""}, "database.existingSecret: is empty: name the Secret"),
    ],
)
def test_a_wrong_value_is_refused_by_name(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(HelmError, match=message):
        render(MINIMAL, **overrides)
