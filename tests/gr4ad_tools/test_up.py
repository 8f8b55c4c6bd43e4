from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import psycopg
import pytest
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc
from gr4ad_runtime.errors import FailedPreconditionError, InvalidArgumentError
from gr4ad_tools.suite_processes import default_ports
from gr4ad_tools.supervisor import is_live, is_ready
from gr4ad_tools.up import Suite

from tests.gr4ad_tools.test_embedded_postgres import is_running, wait_until
from tests.plain_channel import plain_channel

ROOT = Path(__file__).parents[2]
SAMPLE = [sys.executable, str(ROOT / "tests" / "gr4ad_runtime" / "sample_service.py")]
ENV = {"PYTHONPATH": str(ROOT)}


async def test_services_and_database_run_until_the_end(tmp_path: Path) -> None:
    commands = {"ad_generator": SAMPLE, "sid_assigner": [*SAMPLE, "unready"]}
    suite = Suite(tmp_path, commands=commands, env=ENV, durable=False)
    async with suite:
        assert set(suite.addresses) == set(commands)
        assert await is_ready(suite.addresses["ad_generator"])
        assert await is_live(suite.addresses["sid_assigner"])
        assert not await is_ready(suite.addresses["sid_assigner"])
        with pytest.raises(TimeoutError):
            await suite.wait_ready("sid_assigner", 0.3)
        with psycopg.connect(suite.database_url.replace("+psycopg", "")) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("gr4ad",)
        suite.kill("ad_generator")
        async with asyncio.timeout(30.0):
            while suite.restarts["ad_generator"] == 0:
                await asyncio.sleep(0.05)
        await suite.wait_ready("ad_generator", 30.0)
        assert suite.restarts == {"ad_generator": 1, "sid_assigner": 0}
    assert not await is_live(suite.addresses["ad_generator"])
    assert (tmp_path / "logs" / "sid_assigner.log").exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(suite.database_url.replace("+psycopg", ""))


async def test_every_service_is_told_where_the_others_are(tmp_path: Path) -> None:
    show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    suite = Suite(
        tmp_path,
        database_url="postgresql+psycopg://u@h/d",
        otlp_endpoint="http://127.0.0.1:4317",
        ports=default_ports(),
        env={"GR4AD_LOG_LEVEL": "DEBUG"},
        service_env={"rspo_trainer": {"OMP_NUM_THREADS": "7"}},
        commands=dict.fromkeys(default_ports(), show),
    )
    environment = suite._environment("rspo_trainer")
    assert environment["GR4AD_PORT"] == "50054"
    assert environment["GR4AD_DATABASE_URL"] == "postgresql+psycopg://u@h/d"
    assert environment["GR4AD_ARTIFACT_STORE"] == str(tmp_path / "artifacts")
    assert environment["GR4AD_OTLP_ENDPOINT"] == "http://127.0.0.1:4317"
    assert environment["GR4AD_SID_ASSIGNER_ADDRESS"] == "127.0.0.1:50051"
    assert environment["GR4AD_AD_GENERATOR_ADDRESS"] == "127.0.0.1:50052"
    assert environment["GR4AD_REWARD_LOGGER_ADDRESS"] == "127.0.0.1:50053"
    assert environment["GR4AD_RSPO_TRAINER_ADDRESS"] == "127.0.0.1:50054"
    assert environment["GR4AD_LOG_LEVEL"] == "DEBUG"
    assert environment["OMP_NUM_THREADS"] == "7"
    assert suite._environment("sid_assigner")["OMP_NUM_THREADS"] == "1"


def test_a_canary_is_a_second_generator_that_shares_nothing_with_the_first(tmp_path: Path) -> None:
    env = {"GR4AD_CHANNEL": "other", "GR4AD_REST_PORT": "8080"}
    suite = Suite(tmp_path, ports=default_ports(canary=True), env=env, canary=True)
    assert list(suite.addresses)[:2] == ["ad_generator", "ad_generator_canary"]  # stopped before those they call
    assert suite.addresses["ad_generator_canary"] == "127.0.0.1:50055"
    first, second = (suite._environment(name) for name in ("ad_generator", "ad_generator_canary"))
    differing = {name for name in first if first[name] != second[name]}
    assert differing == {"GR4AD_PORT", "GR4AD_CHANNEL", "GR4AD_POLICY_CACHE", "GR4AD_REST_PORT"}
    assert (first["GR4AD_CHANNEL"], second["GR4AD_CHANNEL"]) == ("other", "canary")
    assert "ad_generator_canary" not in Suite(tmp_path).addresses
    assert len(set(Suite(tmp_path, canary=True).addresses.values())) == 5
    chosen = Suite(tmp_path, service_env={"ad_generator_canary": {"GR4AD_CHANNEL": "next"}}, canary=True)
    assert chosen._environment("ad_generator_canary")["GR4AD_CHANNEL"] == "next"


async def test_the_canary_follows_its_channel(tmp_path: Path) -> None:
    suite = Suite(tmp_path, database_url="postgresql+psycopg://u@h/d", canary=True)
    name = "ad_generator_canary"
    commands = {name: suite._commands[name]}
    async with Suite(tmp_path, database_url="postgresql+psycopg://u@h/d", commands=commands) as running:
        async with plain_channel(running.addresses[name]) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            status = await stub.GetEngineStatus(generation_pb2.GetEngineStatusRequest(), timeout=10)
            assert status.channel == "canary"


async def test_a_service_that_does_not_start_ends_the_start(tmp_path: Path) -> None:
    commands = {"ad_generator": SAMPLE, "sid_assigner": [*SAMPLE, "unavailable"]}
    suite = Suite(tmp_path, database_url="postgresql+psycopg://u@h/d", commands=commands, env=ENV)
    with pytest.raises(FailedPreconditionError, match="^sid_assigner: ended with exit code 1: .*start it"):
        async with suite:
            pass
    assert all(process.pid is None for process in suite.processes.values())


def test_unknown_services_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="^service: generator: choose one of ad_generator"):
        Suite(tmp_path, service_env={"generator": {}})


def up_process(tmp_path: Path) -> subprocess.Popen[str]:
    """Run the command as a user does, over sample services."""
    script = dedent(f"""
        import typer
        from gr4ad_tools import up
        suite = up.Suite
        commands = {{name: {SAMPLE!r} for name in ("ad_generator", "sid_assigner")}}
        up.Suite = lambda *a, **k: suite(*a, **k, commands=commands, env={ENV!r}, durable=False)
        app = typer.Typer()
        app.command()(up.up)
        app()
    """)
    return subprocess.Popen(
        [sys.executable, "-c", script, "--workdir", str(tmp_path / "up"), "--free-ports"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "400"},
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_command_prints_addresses_and_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    running = up_process(tmp_path)
    assert running.stdout is not None
    said = ""
    for line in running.stdout:
        said += line
        if "Ctrl-C" in line:
            break
    pids = [int(pid) for pid in re.findall(r"127\.0\.0\.1:\d+ *│ *(\d+)", said)]
    pids.append(int((tmp_path / "up" / "postgres" / "postmaster.pid").read_text().split()[0]))
    assert len(pids) == 3, said
    assert all(is_running(pid) for pid in pids)
    os.killpg(running.pid, number)  # as a terminal does: to the whole foreground group
    rest, _ = running.communicate(timeout=30.0)
    if number is not signal.SIGKILL:
        assert running.returncode == 0, said + rest
        assert "Stopped." in rest
        assert not any(is_running(pid) for pid in pids)
        log = (tmp_path / "up" / "logs" / "ad_generator.log").read_text()
        assert '"stopped"' in log
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid), f"the end of {pid}")
