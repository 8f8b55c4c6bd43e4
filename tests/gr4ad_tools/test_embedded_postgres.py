from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import psycopg
import pytest
from gr4ad_runtime.errors import DataLossError, FailedPreconditionError, ResourceExhaustedError
from gr4ad_tools.embedded_postgres import EmbeddedPostgres


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "postgres"


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def wait_until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20.0
    while not done():
        assert time.monotonic() < deadline, f"{what} did not come to pass"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # dead, and its parent has not looked yet


def test_data_outlives_the_server(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, durable=False) as server:
        url = server.create_database("shop")
        assert server.create_database("shop") == url
        with connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            assert connection.execute("SHOW server_version").fetchone()[0].startswith("18")
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        assert server.running
    assert not server.running
    with EmbeddedPostgres(data_dir) as server, connect(server.url("shop")) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)


def test_nothing_is_left_of_an_ephemeral_server(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, durable=False, ephemeral=True) as server:
        pid = server.pid
    assert not data_dir.exists()
    assert pid is not None
    assert not is_running(pid)


def test_a_killed_owner_leaves_no_server_behind(data_dir: Path) -> None:
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            dedent(f"""
            import time
            from pathlib import Path
            from gr4ad_tools.embedded_postgres import EmbeddedPostgres
            server = EmbeddedPostgres(Path({str(data_dir)!r}), durable=False, ephemeral=True)
            server.start()
            print(server.pid, server.url(), flush=True)
            time.sleep(60)
        """),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    pid, url = owner.stdout.readline().split()
    connect(url).close()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    wait_until(lambda: not is_running(int(pid)), "the end of the server")
    wait_until(lambda: not data_dir.exists(), "the end of its folder")


def test_too_little_disk_space_is_told_before_the_start(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir, min_free_bytes=100 << 20, free_bytes=lambda path: 99 << 20)
    with pytest.raises(
        ResourceExhaustedError, match=r"no disk space for the database: 99 MiB free, 100 MiB needed; free some"
    ) as raised:
        server.start()
    assert str(data_dir) in str(raised.value)
    assert list(data_dir.iterdir()) == []


def test_a_disk_that_fills_up_during_the_start_is_told(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    error = server._failure("FATAL: could not write to file: No space left on device\n")
    assert isinstance(error, ResourceExhaustedError)


def test_a_folder_of_something_else_is_left_alone(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "thesis.txt").write_text("years of work")
    with pytest.raises(DataLossError, match="PG_VERSION is missing"):
        EmbeddedPostgres(data_dir, ephemeral=True).start()
    assert (data_dir / "thesis.txt").read_text() == "years of work"


def test_another_version_is_told(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "PG_VERSION").write_text("16\n")
    with pytest.raises(FailedPreconditionError, match="PG_VERSION: 16: written by another major version than 18"):
        EmbeddedPostgres(data_dir).start()


def test_a_broken_cluster_is_told_with_what_the_server_says(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, durable=False):
        pass
    control = data_dir / "global" / "pg_control"
    control.write_bytes(b"\0" * control.stat().st_size)
    with pytest.raises(DataLossError, match="restore it from a backup") as raised:
        EmbeddedPostgres(data_dir).start()
    assert "incompatible with server" in str(raised.value)


def test_two_servers_do_not_share_a_folder(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, durable=False) as first:
        with pytest.raises(FailedPreconditionError, match="another server uses it"):
            EmbeddedPostgres(data_dir).start()
        connect(first.url()).close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FailedPreconditionError, match="choose a folder that can be written"):
        EmbeddedPostgres(tmp_path / "postgres").start()


def test_a_file_in_the_way_is_told(data_dir: Path) -> None:
    data_dir.touch()
    with pytest.raises(FailedPreconditionError, match="choose a folder that can be written"):
        EmbeddedPostgres(data_dir).start()
