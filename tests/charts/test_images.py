"""Dockerfiles and skaffold.yaml name what exists."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SERVICES = ("sid_assigner", "ad_generator", "reward_logger", "rspo_trainer")
SKAFFOLD_SCHEMA = ROOT.parent / "shared" / "schemas" / "skaffold-v4beta13.json"


@pytest.mark.parametrize("service", SERVICES)
def test_a_dockerfile_copies_what_exists_and_starts_a_module_that_does(service: str) -> None:
    text = (ROOT / "services" / service / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source
    assert f'ENTRYPOINT ["python", "-m", "{service}"]' in text
    assert importlib.util.find_spec(f"{service}.__main__") is not None
    assert re.search(r"^USER 10001", text, flags=re.M)


@pytest.mark.parametrize("service", SERVICES)
def test_torch_comes_only_where_the_service_needs_it(service: str) -> None:
    text = (ROOT / "services" / service / "Dockerfile").read_text()
    assert ("torch" in text) == (service in {"ad_generator", "rspo_trainer"})
    assert not re.search(r"^torch\b", (ROOT / "requirements" / f"{service}.txt").read_text(), flags=re.M)


def test_skaffold_builds_every_service_and_hands_each_image_to_the_chart() -> None:
    config = yaml.safe_load((ROOT / "skaffold.yaml").read_text())
    images = {artifact["image"]: artifact["docker"]["dockerfile"] for artifact in config["build"]["artifacts"]}
    assert images == {f"gr4ad-{s.replace('_', '-')}": f"services/{s}/Dockerfile" for s in SERVICES}
    (release,) = config["deploy"]["helm"]["releases"]
    values = yaml.safe_load((ROOT / release["chartPath"] / "values.yaml").read_text())
    for key, template in release["setValueTemplates"].items():
        service, field = key.split(".")
        assert field in values[service]
        assert template.strip("{}.").removeprefix("IMAGE_FULLY_QUALIFIED_").replace("_", "-") in images
    for file in release["valuesFiles"]:
        assert (ROOT / file).exists()


@pytest.mark.skipif(not SKAFFOLD_SCHEMA.exists(), reason="Skaffold's schema is not beside this checkout")
def test_skaffold_fits_its_schema() -> None:
    checker = Path(sys.executable).parent / "check-jsonschema"
    done = subprocess.run(
        [str(checker), "--schemafile", str(SKAFFOLD_SCHEMA), str(ROOT / "skaffold.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
