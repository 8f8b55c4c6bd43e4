"""Ingestion of a data folder: all of it, once, and what is said when it cannot be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import typer
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_core.learning.data_folder import DataFolderError
from gr4ad_tools import ingest as ingest_module
from gr4ad_tools.ingest import ingest_command, ingest_folder, look_up, sid_app
from numpy.typing import NDArray
from sid_assigner.settings import SidAssignerSettings
from typer.testing import CliRunner

from tests.sid_assigner.small_codebooks import publish
from tests.sid_assigner.suite import Suite, run_suite


@pytest.fixture
async def suite(database_url: str, artifact_store_url: str) -> AsyncIterator[Suite]:
    codebooks = publish(Path(artifact_store_url))
    settings = SidAssignerSettings(
        port=0, database_url=database_url, artifact_store=artifact_store_url, log_level="ERROR"
    )
    async with run_suite(settings, codebooks) as suite:
        await suite.activate("small")
        yield suite


def write_items(folder: Path, items: list[dict[str, Any]]) -> Path:
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def items(count: int) -> list[dict[str, Any]]:
    return [
        {"item_id": f"i{number}", "title": f"lipstick {number % 7}", "brand": f"brand {number % 3}"}
        for number in range(count)
    ]


async def test_a_folder_is_created_whole_and_a_second_run_changes_nothing(suite: Suite, tmp_path: Path) -> None:
    folder = write_items(tmp_path, items(95))
    seen: list[tuple[int, int]] = []
    result = await ingest_folder(
        folder, suite.address, batch_size=20, concurrency=3, progress=lambda done, total: seen.append((done, total))
    )
    assert (result.ads, result.cursor) == (95, 95)
    assert result.seconds > 0
    assert seen[-1] == (95, 95)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    again = await ingest_folder(folder, suite.address, batch_size=20)
    assert (again.ads, again.cursor) == (95, 95)
    stream = suite.stub.ReadCatalog(sid_pb2.ReadCatalogRequest(until_current=True))
    catalog = [entry async for part in stream for entry in part.entries]
    assert {entry.ad_id for entry in catalog} == {f"i{number}" for number in range(95)}
    assert {entry.advertiser_id for entry in catalog} == {"brand 0", "brand 1", "brand 2"}
    assert {entry.bid_micros for entry in catalog} == {1_000_000}


async def test_fields_that_are_stated_arrive_and_a_long_brand_is_cut(suite: Suite, tmp_path: Path) -> None:
    stated = {
        "item_id": "full",
        "title": "game",
        "categories": ["Games", "Puzzle"],
        "description": "fun",
        "advertiser_id": "account",
        "ad_type": "virtual_product",
        "conversion_type": "install",
        "bid_micros": 7,
        "state": "paused",
    }
    long_brand = {"item_id": "long", "title": "x", "brand": "b" * 200}
    await ingest_folder(write_items(tmp_path, [stated, long_brand]), suite.address)
    full = await look_up(suite.address, ad_id="full")
    assert (full.advertiser_id, full.bid_micros) == ("account", 7)
    assert full.conversion_type == sid_pb2.CONVERSION_TYPE_INSTALL
    assert full.state == sid_pb2.AD_STATE_PAUSED
    assert (await look_up(suite.address, ad_id="long")).advertiser_id == "b" * 128
    assert (await look_up(suite.address, codes=full.sid.codes)).ad_id == "full"


async def test_a_bad_folder_or_number_is_refused_before_anything_is_sent(suite: Suite, tmp_path: Path) -> None:
    folder = write_items(tmp_path, [*items(2), {"item_id": "i1", "title": "twice"}])
    with pytest.raises(DataFolderError):
        await ingest_folder(folder, suite.address)
    with pytest.raises(ValueError, match="batch_size: 1001: choose 1 to 1000"):
        await ingest_folder(folder, suite.address, batch_size=1001)
    with pytest.raises(ValueError, match="concurrency: 0"):
        await ingest_folder(folder, suite.address, concurrency=0)
    stream = suite.stub.ReadCatalog(sid_pb2.ReadCatalogRequest(until_current=True))
    assert [entry async for part in stream for entry in part.entries] == []


async def test_a_refused_batch_ends_the_run_with_its_reason(suite: Suite, tmp_path: Path) -> None:
    await suite.create("before", [sid_pb2.Ad(ad_id="i30", title="made by someone else")])
    folder = write_items(tmp_path, items(60))
    with pytest.raises(grpc.aio.AioRpcError, match=r"ads\[0\].ad_id: 'i30': the ad exists"):
        await ingest_folder(folder, suite.address, batch_size=10, concurrency=1)
    stream = suite.stub.ReadCatalog(sid_pb2.ReadCatalogRequest(until_current=True))
    known = {entry.ad_id async for part in stream for entry in part.entries}
    assert known == {f"i{number}" for number in range(31)}  # the batches before it, and nothing after it


def shown(output: str) -> dict[str, str]:
    """Read the fields that `sid get` shows; the service logs to the same stream here."""
    words = [line.split(maxsplit=1) for line in output.splitlines()]
    return {
        word[0]: word[1] for word in words if word[0] in ("ad", "sid", "codebook", "state", "bid_micros", "created")
    }


async def test_the_commands_say_what_was_done_and_what_is_wrong(suite: Suite, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command("ingest")(ingest_command)
    app.add_typer(sid_app, name="sid")
    folder = write_items(tmp_path, items(5))

    async def run(*arguments: str) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--address", suite.address])

    done = await run("ingest", str(folder))
    assert done.exit_code == 0
    assert "5 ads in " in done.output
    by_ad = await run("sid", "get", "i3")
    assert by_ad.exit_code == 0
    sid = shown(by_ad.output)["sid"]
    assert shown(by_ad.output)["ad"] == "i3"
    assert len(sid.split(",")) == 3
    both = await run("sid", "get", "i4", "i3")
    assert [line.split()[1] for line in both.output.splitlines() if line.startswith("ad ")] == ["i4", "i3"]
    assert shown(both.output) == shown(by_ad.output)  # the later one's fields stay
    by_sid = await run("sid", "get", "--sid", sid)
    assert shown(by_sid.output) == shown(by_ad.output)
    listed = await run("sid", "list", "--state", "active", "--limit", "3")
    assert [line.split()[0] for line in listed.output.splitlines() if line.startswith("i")] == ["i0", "i1", "i2"]
    for arguments, fragment in {
        ("sid", "get", "i3", "nobody"): "ad_ids[1]: 'nobody': no such ad",
        ("sid", "get", "--sid", "1,x"): "--sid: 1,x: give whole numbers",
        ("sid", "get"): "give one of them",
        ("ingest", str(tmp_path / "nowhere")): "nowhere",
    }.items():
        failed = await run(*arguments)
        assert failed.exit_code == 1
        assert fragment in " ".join(failed.output.split())


async def test_no_server_is_told_with_the_address(tmp_path: Path, free_port: Any) -> None:
    app = typer.Typer()
    app.command("ingest")(ingest_command)
    address = f"127.0.0.1:{free_port()}"
    folder = write_items(tmp_path, items(1))
    failed = await asyncio.to_thread(CliRunner().invoke, app, [str(folder), "--address", address])
    assert failed.exit_code == 1
    assert f"address: {address}: no answer" in " ".join(failed.output.split())


class BusyAssigner(sid_pb2_grpc.SidServiceServicer):
    """Refuses batches after the first, as a server does that has too much to do or is being restarted."""

    def __init__(self, refusals: list[tuple[grpc.StatusCode, str]]) -> None:
        self.created: list[sid_pb2.BatchCreateAdSidsRequest] = []
        self._refusals = refusals

    async def BatchCreateAdSids(
        self, request: sid_pb2.BatchCreateAdSidsRequest, context: grpc.aio.ServicerContext
    ) -> sid_pb2.BatchCreateAdSidsResponse:
        if self.created and self._refusals:
            await context.abort(*self._refusals.pop())
        self.created.append(request)
        return sid_pb2.BatchCreateAdSidsResponse(ad_sids=[sid_pb2.AdSid(ad_id=ad.ad_id) for ad in request.ads])


@asynccontextmanager
async def serving(servicer: BusyAssigner) -> AsyncIterator[str]:
    server = grpc.aio.server()
    sid_pb2_grpc.add_SidServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_a_server_that_is_busy_or_away_is_asked_again(tmp_path: Path) -> None:
    busy = (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue: 68 batches under way: send the batch again after a back-off")
    servicer = BusyAssigner([busy, (grpc.StatusCode.UNAVAILABLE, "away"), busy])
    async with serving(servicer) as address:
        result = await ingest_folder(write_items(tmp_path, items(30)), address, batch_size=10, concurrency=1)
    assert result.ads == 30
    assert len(servicer.created) == 3


async def test_a_full_codebook_is_not_asked_again(tmp_path: Path) -> None:
    full = (grpc.StatusCode.RESOURCE_EXHAUSTED, "codebook_id: 'small': all 128 SIDs are taken: fit another")
    async with serving(BusyAssigner([full])) as address:
        with pytest.raises(grpc.aio.AioRpcError, match="all 128 SIDs are taken"):
            await ingest_folder(write_items(tmp_path, items(30)), address, batch_size=10, concurrency=1)


async def test_an_encoders_vectors_are_sent_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder:
        def __init__(self, folder: Path) -> None:
            assert folder == tmp_path

        def encode(self, texts: list[str]) -> NDArray[np.float32]:
            return np.array([[len(text), index] for index, text in enumerate(texts)], dtype=np.float32)

    monkeypatch.setattr(ingest_module, "HuggingFaceEncoder", Encoder)
    servicer = BusyAssigner([])
    async with serving(servicer) as address:
        await ingest_folder(write_items(tmp_path, items(30)), address, batch_size=20, encoder=tmp_path)
    sent = {ad.ad_id: list(ad.embedding) for request in servicer.created for ad in request.ads}
    assert [sent[f"i{number}"][1] for number in range(30)] == list(range(30))
