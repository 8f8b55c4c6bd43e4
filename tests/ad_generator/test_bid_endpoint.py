"""Bid requests over loopback HTTP to a running generator: what is bid, what is not, and never after tmax."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from ad_generator.arrival import Arrival
from ad_generator.bid_endpoint import PATH, BidEndpoint
from gr4ad.generation.v1 import generation_pb2
from gr4ad_runtime import semconv
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.routing import Route

from tests.ad_generator.neighbours import PAUSED, eventually
from tests.ad_generator.policies import publish
from tests.ad_generator.suite import ALL_SIDS, Neighbours, Suite, request, run_generator, run_ready_generator

CLICKS = ["ad-0-1-2", "ad-3-4-5"]
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def bid_request(history: list[str] = CLICKS, bids: int = 5, floor: float = 0.0, **fields: Any) -> dict[str, Any]:
    events = [{"ad_id": ad_id, "behavior": "click"} for ad_id in history]
    known = {"events": events} if events else {"cold_start": True}
    imp = {"id": "1", "banner": {}, "bidfloor": floor, "bidfloorcur": "USD", "ext": {"gr4ad": {"bids": bids}}}
    return {"id": "auction", "imp": [imp], "tmax": 10_000, "user": {"ext": {"gr4ad": known}}, **fields}


class Exchange:
    """Sends bid requests to a port."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}{PATH}"

    async def post(self, body: dict[str, Any] | bytes, **headers: str) -> tuple[int, Any]:
        """Return status and content, None for none; every answer names the version."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        call = urllib.request.Request(self._url, data, {"content-type": "application/json", **headers})
        return await asyncio.to_thread(self._send, call)

    def _send(self, call: urllib.request.Request) -> tuple[int, Any]:
        try:
            answer = urllib.request.urlopen(call, timeout=20)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            assert answer.headers["x-openrtb-version"] == "2.6"
            content = answer.read()
            return answer.status, json.loads(content) if content else None


@asynccontextmanager
async def exchange(endpoint: Any) -> AsyncIterator[Exchange]:
    """Serve an endpoint on a loopback port."""
    app = Starlette(routes=[Route(PATH, endpoint, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listening]))
    try:
        yield Exchange(listening.getsockname()[1])
    finally:
        server.should_exit = True
        await serving


def bids_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [bid for seat in answer["seatbid"] for bid in seat["bid"]]


async def test_bids_are_the_candidates_of_the_typed_contract_and_are_logged(suite: Suite) -> None:
    asked = request(CLICKS, count=40)
    asked.user_context.ClearField("request_time")
    asked.user_context.user_id = "u-7"
    expected = (await suite.stub.GenerateAds(asked, timeout=10)).candidates[:5]
    async with exchange(suite.model.bid) as ssp:
        user = {**bid_request()["user"], "buyeruid": "u-7"}
        status, answer = await ssp.post(bid_request(user=user), **{"gr4ad-bucket": "42"})
    assert (status, answer["id"], answer["cur"]) == (200, "auction", "USD")
    assert answer["ext"]["gr4ad"] == {"policy_id": "first", "codebook_id": "small"}
    bids = bids_of(answer)
    assert [bid["adid"] for bid in bids] == [ad.ad_id for ad in expected]
    assert [bid["price"] for bid in bids] == [ad.predicted_ecpm_micros / 1e6 for ad in expected]
    assert [bid["ext"]["gr4ad"]["sid"] for bid in bids] == [list(ad.sid.codes) for ad in expected]
    assert [bid["ext"]["gr4ad"]["log_prob"] for bid in bids] == [ad.log_prob for ad in expected]

    lists = suite.neighbours.rewards.lists
    await eventually(lambda: answer["bidid"] in lists, "the list is logged")
    logged = lists[answer["bidid"]]
    assert answer["bidid"].startswith("auction-")
    assert [bid["adid"] for bid in bids] == [ad.ad_id for ad in logged.candidates[:5]]
    assert len(logged.candidates) == 40
    assert [event.ad_id for event in logged.user_context.history] == CLICKS
    assert (logged.user_context.user_id, logged.bucket) == ("u-7", 42)
    assert logged.latency_us > 0


async def test_a_packed_request_is_the_same_request(suite: Suite) -> None:
    plain = json.dumps(bid_request()).encode()
    async with exchange(suite.model.bid) as ssp:
        answers = [
            await ssp.post(body, **headers)
            for body, headers in ((plain, {}), (gzip.compress(plain), {"content-encoding": "gzip"}))
        ]
    one, other = ([bid["adid"] for bid in bids_of(answer)] for _, answer in answers)
    assert one == other
    assert len(one) == 5


async def test_the_same_auction_twice_is_two_lists(suite: Suite) -> None:
    async with exchange(suite.model.bid) as ssp:
        answers = [(await ssp.post(bid_request(id="x" * 200)))[1] for _ in range(2)]
    assert [answer["id"] for answer in answers] == ["x" * 200] * 2
    ids = {answer["bidid"] for answer in answers}
    assert len(ids) == 2
    await eventually(lambda: ids <= set(suite.neighbours.rewards.lists), "both are logged")


async def test_a_test_auction_is_answered_and_not_logged(suite: Suite) -> None:
    async with exchange(suite.model.bid) as ssp:
        status, trial = await ssp.post(bid_request(test=1))
        _, live = await ssp.post(bid_request(test=0))
    assert status == 200
    assert bids_of(trial)
    lists = suite.neighbours.rewards.lists
    await eventually(lambda: live["bidid"] in lists, "the list of the live auction is logged")
    assert set(lists) == {live["bidid"]}


async def test_only_live_ads_are_bid_for(neighbours: Neighbours) -> None:
    live = neighbours.catalogue.fill(ALL_SIDS[::3])
    for sid in ALL_SIDS[1::3]:
        neighbours.catalogue.put("paused-" + "-".join(map(str, sid)), sid, PAUSED)
    neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
    async with run_generator(neighbours) as suite, exchange(suite.model.bid) as ssp:
        await suite.serves("first")
        _, before = await ssp.post(bid_request(["paused-0-0-1"], bids=64))
        offered = [bid["adid"] for bid in bids_of(before)]
        assert set(offered) == set(live)
        for ad_id in offered[:3]:
            cursor = neighbours.catalogue.put(ad_id, [int(code) for code in ad_id.split("-")[1:]], PAUSED)
        await suite.reaches(lambda status: status.catalog_cursor == cursor, "the pauses are known")
        _, after = await ssp.post(bid_request(["paused-0-0-1"], bids=64))
        assert {bid["adid"] for bid in bids_of(after)} == set(live) - set(offered[:3])


async def test_floors_and_seats_are_kept(neighbours: Neighbours) -> None:
    for number, sid in enumerate(ALL_SIDS):
        name = "ad-" + "-".join(map(str, sid))
        neighbours.catalogue.put(name, sid, advertiser_id=("shop", "shoes.example")[number % 2])
    neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
    async with run_generator(neighbours) as suite, exchange(suite.model.bid) as ssp:
        await suite.serves("first")
        _, free = await ssp.post(bid_request(bids=8))
        assert {seat["seat"] for seat in free["seatbid"]} == {"shop", "shoes.example"}
        prices = sorted(bid["price"] for bid in bids_of(free))
        floor = prices[len(prices) // 2]
        assert prices[0] < floor
        _, dear = await ssp.post(bid_request(bids=8, floor=floor))
        assert min(bid["price"] for bid in bids_of(dear)) >= floor
        assert await ssp.post(bid_request(floor=1e6)) == (204, None)
        _, shoes = await ssp.post(bid_request(wseat=["shoes.example"]))
        assert [seat["seat"] for seat in shoes["seatbid"]] == ["shoes.example"]
        assert all(bid["adomain"] == ["shoes.example"] for bid in bids_of(shoes))
        _, blocked = await ssp.post(bid_request(badv=["shoes.example"]))
        assert [seat["seat"] for seat in blocked["seatbid"]] == ["shop"]
        assert await ssp.post(bid_request(wseat=["nobody"])) == (204, None)


async def test_nothing_is_computed_where_no_bid_could_be_made(suite: Suite) -> None:
    async with exchange(suite.model.bid) as ssp:
        assert await ssp.post(bid_request(cur=["EUR"])) == (204, None)
        assert await ssp.post(bid_request(user={"id": "u"})) == (200, {"id": "auction", "nbr": 8})
        assert await ssp.post(bid_request(tmax=20)) == (200, {"id": "auction", "nbr": 15})
    assert (await suite.status()).requests_answered == 0


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (b'{"id": "auction", "imp": [', {}, "body: 26 bytes: Invalid JSON"),
        (b"[" * 2**20, {}, "body: 1048576 bytes: Invalid JSON"),
        (b"[" * (2**20 + 1), {}, "body: more than 1048576 bytes: "),
        (gzip.compress(b"[" * (2**20 + 1)), {"content-encoding": "gzip"}, "body: more than 1048576 bytes: "),
        (gzip.compress(b"[" * 100)[:-9], {"content-encoding": "gzip"}, "the gzip stream has no end"),
        (b"{}", {"content-encoding": "gzip"}, "send gzip, as the header says"),
        (bid_request(tmax=-5), {}, "tmax: -5: "),
        (bid_request(imp=[{"banner": {}}]), {}, "imp[0].id: missing"),
        (bid_request(), {"gr4ad-bucket": "100"}, "gr4ad-bucket: 100: "),
        (bid_request(), {"x-openrtb-version": "3.0"}, "x-openrtb-version: 3.0: send a bid request of OpenRTB 2.x"),
        (bid_request(), {"content-encoding": "br"}, "content-encoding: br: send gzip, or leave the header out"),
    ],
)
async def test_a_wrong_request_is_refused_by_name(
    suite: Suite, body: dict[str, Any] | bytes, headers: dict[str, str], said: str
) -> None:
    async with exchange(suite.model.bid) as ssp:
        status, answer = await ssp.post(body, **headers)
    assert status == 400
    assert said in answer["error"]


async def test_without_a_policy_there_is_no_bid(neighbours: Neighbours) -> None:
    async with run_generator(neighbours) as suite, exchange(suite.model.bid) as ssp:
        assert await ssp.post(bid_request()) == (200, {"id": "auction", "nbr": 1})


async def test_a_full_queue_is_a_no_bid_at_once(neighbours: Neighbours) -> None:
    async with run_ready_generator(
        neighbours, queue_limit=1, max_batch_wait_us=1_000_000, result_cache_seconds=0
    ) as suite:
        async with exchange(suite.model.bid) as ssp:
            calls = [asyncio.create_task(ssp.post(bid_request())) for _ in range(2)]
            done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            assert [call.result() for call in done] == [(200, {"id": "auction", "nbr": 1})]
            assert [len(bids_of((await call)[1])) for call in waiting] == [5]


async def test_a_request_whose_tmax_suffices_for_no_search_is_answered_before_its_batch(neighbours: Neighbours) -> None:
    async with run_ready_generator(neighbours, max_batch_wait_us=1_000_000) as suite:
        async with exchange(suite.model.bid) as ssp:
            calls = [asyncio.create_task(ssp.post(bid_request(tmax=tmax))) for tmax in (10_000, 21)]
            done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            assert [call.result() for call in done] == [(200, {"id": "auction", "nbr": 15})]
            (answer,) = [(await call)[1] for call in waiting]
        lists = neighbours.rewards.lists
        await eventually(lambda: answer["bidid"] in lists, "the list that was sent is logged")
        assert set(lists) == {answer["bidid"]}


async def test_a_model_call_that_takes_too_long_is_not_waited_for() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang(message: generation_pb2.GenerateAdsRequest, arrival: Arrival) -> generation_pb2.GenerateAdsResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("nobody sets the event")

    endpoint = BidEndpoint(hang, lambda ad_id: "shop", currency="USD", margin_us=20_000, default_budget_us=50_000)
    async with exchange(endpoint.post) as ssp:
        for tmax in (100, None):  # without tmax the server's own budget counts
            assert await ssp.post(bid_request(tmax=tmax)) == (200, {"id": "auction", "nbr": 15})
            assert begun.is_set()
            assert ended.is_set()


async def test_an_auction_is_one_trace_with_its_list(spans: InMemorySpanExporter, suite: Suite) -> None:
    async with exchange(suite.model.bid) as ssp:
        _, answer = await ssp.post(bid_request(), traceparent=f"00-{TRACE}-{CALLER}-01")
    (span,) = (one for one in spans.get_finished_spans() if one.name == semconv.SPAN_ANSWER_BID_REQUEST)
    assert span.parent is not None
    assert trace.format_span_id(span.parent.span_id) == CALLER
    assert span.attributes is not None
    assert span.attributes[semconv.REQUEST_ID] == answer["bidid"]
    lists = suite.neighbours.rewards.lists
    await eventually(lambda: answer["bidid"] in lists, "the list is logged")
    assert lists[answer["bidid"]].traceparent.split("-")[1:3] == [TRACE, trace.format_span_id(span.context.span_id)]
