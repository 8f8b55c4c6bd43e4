"""Renders the chart with real Helm and checks what comes out against the schemas of the kinds it holds."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import cel
import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "gr4ad"
CRDS = ROOT.parent / "shared" / "schemas" / "crds"
HELM = Path(sys.executable).parent / "helm"
CORE_GROUPS = {"v1", "apps/v1", "batch/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1"}
CRD_FILES = {("serving.kserve.io/v1beta1", "InferenceService"): "kserve_inferenceservices.yaml"}


class HelmError(Exception):
    """Helm refused; the text is what it printed."""


def render(*values: Path, **overrides: str) -> list[dict[str, Any]]:
    """Render the chart as release `shop`; overrides use `__` for a dot."""
    command = [str(HELM), "template", "shop", str(CHART)]
    for file in values:
        command += ["--values", str(file)]
    for key, value in overrides.items():
        command += ["--set", f"{key.replace('__', '.')}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HelmError(done.stderr)
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def check(manifest: dict[str, Any]) -> None:
    """Raise if the manifest does not fit its kind's schema, or if the kind is one that nobody has a schema for."""
    kind = (manifest["apiVersion"], manifest["kind"])
    if manifest["apiVersion"] in CORE_GROUPS:
        kubernetes_validate.validate(manifest, "1.36", strict=True)
    elif kind in CRD_FILES:
        _check_custom_resource(manifest, CRDS / CRD_FILES[kind])
    else:
        raise ValueError(f"{kind}: no schema for this kind; add its CRD to CRD_FILES")


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the one container of a Deployment or an InferenceService."""
    spec = (
        manifest["spec"]["predictor"]
        if manifest["kind"] == "InferenceService"
        else manifest["spec"]["template"]["spec"]
    )
    (only,) = spec["containers"]
    return dict(only)


def environment(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the container's environment: a value, or the source it is read from."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(manifest)["env"]}


@functools.cache
def _custom_schema(path: Path, version: str) -> dict[str, Any]:
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    schema = next(v for v in definition["spec"]["versions"] if v["name"] == version)["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return dict(_close(schema))


def _check_custom_resource(manifest: dict[str, Any], path: Path) -> None:
    schema = _custom_schema(path, manifest["apiVersion"].split("/")[1])
    jsonschema.Draft7Validator(schema).validate(manifest)
    for rule, value in _rules(schema, manifest):
        if not cel.compile(rule["rule"]).execute({"self": value}):
            raise ValueError(f"{path.name}: {rule.get('message', rule['rule'])}")


def _close(schema: Any) -> Any:
    """Return the structural schema with unknown fields forbidden, as an API server does under strict validation."""
    if isinstance(schema, list):
        return [_close(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _close(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    is_object = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if is_object and not open_ended:
        closed["additionalProperties"] = False
    return closed


def _rules(schema: dict[str, Any], value: Any) -> list[tuple[dict[str, Any], Any]]:
    """Return every CEL rule that applies to the value or a part of it, but those that compare with an old value."""
    found = [(rule, value) for rule in schema.get("x-kubernetes-validations", []) if "oldSelf" not in rule["rule"]]
    if isinstance(value, dict):
        for name, part in value.items():
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(inner, dict):
                found += _rules(inner, part)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for part in value:
            found += _rules(schema["items"], part)
    return found
