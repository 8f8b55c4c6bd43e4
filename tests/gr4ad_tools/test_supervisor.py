from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent

import pytest
from gr4ad_runtime.errors import FailedPreconditionError
from gr4ad_tools.supervisor import ProcessSpec, SupervisedProcess, is_live, is_ready

from tests.gr4ad_tools.test_embedded_postgres import is_running, wait_until

ROOT = Path(__file__).parents[2]
SAMPLE = [sys.executable, str(ROOT / "tests" / "gr4ad_runtime" / "sample_service.py")]


def spec(folder: Path, command: list[str], port: int = 1) -> ProcessSpec:
    return ProcessSpec(
        name="sample",
        command=command,
        address=f"127.0.0.1:{port}",
        log=folder / "logs" / "sample.log",
        env={"PYTHONPATH": str(ROOT), "GR4AD_PORT": str(port), "GR4AD_DRAIN_SECONDS": "1"},
    )


@asynccontextmanager
async def supervised(spec: ProcessSpec, exits: list[int | None] | None = None) -> AsyncIterator[SupervisedProcess]:
    def note(process: SupervisedProcess) -> None:
        if exits is not None:
            exits.append(process.exit_code)

    process = SupervisedProcess(spec, note)
    await process.start()
    try:
        yield process
    finally:
        await process.stop()


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not done():
            await asyncio.sleep(0.02)


async def test_a_killed_process_is_started_again(tmp_path: Path, free_port: Callable[[], int]) -> None:
    exits: list[int | None] = []
    async with supervised(spec(tmp_path, SAMPLE, free_port()), exits) as process:
        await process.wait_live(30.0)
        first = process.pid
        process.kill()
        await until(lambda: process.restarts == 1)
        await process.wait_live(30.0)
        assert process.pid not in (None, first)
        assert exits == [-signal.SIGKILL]
        assert await is_ready(process.spec.address)
    assert process.pid is None
    assert process.exit_code == 0
    assert not await is_live(process.spec.address)
    assert exits == [-signal.SIGKILL]
    assert process.spec.log.read_text().count('"serving"') == 2


async def test_restarts_are_ever_further_apart(tmp_path: Path) -> None:
    script = "import time, sys; print(time.time(), flush=True); sys.exit(3)"
    exits: list[int | None] = []
    async with supervised(spec(tmp_path, [sys.executable, "-S", "-c", script]), exits) as process:
        await until(lambda: len(process.log_tail(9)) >= 4)
    assert set(exits) == {3}
    times = [float(line) for line in process.spec.log.read_text().splitlines()]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps[0] >= 0.2
    assert gaps[1] >= 0.4
    assert gaps[2] >= 0.8


async def test_a_process_that_ends_while_awaited_is_told_with_its_log(tmp_path: Path) -> None:
    script = "import sys; print('GR4AD_PORT: no such thing'); sys.exit(2)"
    async with supervised(spec(tmp_path, [sys.executable, "-c", script])) as process:
        with pytest.raises(FailedPreconditionError, match="ended with exit code 2: .*no such thing"):
            await process.wait_live(30.0)


async def test_a_process_that_never_answers_is_told(tmp_path: Path) -> None:
    async with supervised(spec(tmp_path, ["sleep", "60"])) as process:
        with pytest.raises(
            FailedPreconditionError, match=r"did not answer at 127.0.0.1:1 in 0.2 s: .*it wrote nothing"
        ):
            await process.wait_live(0.2)


async def test_a_process_that_ignores_the_request_to_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gr4ad_tools.supervisor.KILL_AFTER_S", 0.3)
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    async with supervised(spec(tmp_path, [sys.executable, "-c", script])) as process:
        await until(lambda: process.log_tail(1) == ["deaf"])
    assert process.exit_code == -signal.SIGKILL


async def test_stopping_between_two_runs_starts_none(tmp_path: Path) -> None:
    async with supervised(spec(tmp_path, ["false"])) as process:
        await until(lambda: process.exit_code is not None and process.pid is None)
    restarts = process.restarts
    await asyncio.sleep(0.5)
    assert process.restarts == restarts


def test_a_killed_supervisor_leaves_no_process_behind(tmp_path: Path) -> None:
    script = dedent("""
        import asyncio, sys
        from pathlib import Path
        from gr4ad_tools.supervisor import ProcessSpec, SupervisedProcess

        async def main():
            process = SupervisedProcess(ProcessSpec("s", ["sleep", "60"], "127.0.0.1:1", Path(sys.argv[1]) / "log"))
            await process.start()
            print(process.pid, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """)
    owner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert is_running(pid)
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    wait_until(lambda: not is_running(pid), "the end of the process")
