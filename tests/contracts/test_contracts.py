"""The contracts keep their style and their past, and hold no RPC that nobody calls."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = ROOT / "protos" / "gen" / "contracts.binpb"
RPCS = sorted(
    (service, rpc)
    for path in (ROOT / "protos" / "gr4ad").glob("**/*.proto")
    for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", path.read_text(), flags=re.M | re.S)
    for rpc in re.findall(r"^  rpc (\w+)\(", body, flags=re.M)
)


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "buf"), *arguments, "--config", str(ROOT / "buf.yaml")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_contracts_keep_the_style() -> None:
    done = buf("lint", str(CONTRACTS))
    assert done.returncode == 0, done.stdout


def test_the_contracts_break_no_caller_of_the_last_release() -> None:
    done = buf("breaking", str(CONTRACTS), "--against", str(ROOT / "protos" / "released.binpb"))
    assert done.returncode == 0, done.stdout


def calls(rpc: str, *folders: str) -> list[Path]:
    """Return the files that call an RPC on a stub."""
    call = re.compile(rf"\.{rpc}\(")
    files = (path for folder in folders for path in (ROOT / folder).glob("**/*.py"))
    return [path for path in files if call.search(path.read_text())]


@pytest.mark.parametrize(("service", "rpc"), RPCS, ids=lambda value: value)
def test_every_rpc_has_a_caller_and_a_test(service: str, rpc: str) -> None:
    assert calls(rpc, "services", "tools"), f"{service}.{rpc}: nothing calls it; bring it with the step that does"
    assert calls(rpc, "tests"), f"{service}.{rpc}: no test calls it"


def test_the_services_are_the_four_that_there_are() -> None:
    assert {service for service, _ in RPCS} == {"SidService", "GenerationService", "RewardService", "TrainingService"}
