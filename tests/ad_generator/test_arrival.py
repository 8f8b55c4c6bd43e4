"""What a served list says of how its request came: channel, bucket, latency."""

from __future__ import annotations

import time

import grpc
import numpy as np
import pytest
from ad_generator.arrival import Arrival, parse_bucket
from gr4ad_runtime.errors import InvalidArgumentError
from kserve import InferInput, InferRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.ad_generator.neighbours import eventually
from tests.ad_generator.suite import Neighbours, Suite, request, run_ready_generator

COLD = {
    "history_ad_ids": ("BYTES", np.array([], np.object_)),
    "history_behaviors": ("INT32", np.array([], np.int32)),
    "candidate_count": ("INT32", np.array([3], np.int32)),
    "cold_start": ("BOOL", np.array([True])),
}


async def infer(suite: Suite, request_id: str, metadata: list[tuple[str, str]]) -> None:
    inputs = []
    for name, (datatype, values) in COLD.items():
        inputs.append(InferInput(name, list(values.shape), datatype))
        inputs[-1].set_data_from_numpy(values)
    message = InferRequest("gr4ad", inputs, request_id=request_id).to_grpc()
    await GRPCInferenceServiceStub(suite.client).ModelInfer(message, timeout=10, metadata=metadata)


async def test_a_served_list_names_channel_bucket_and_latency(neighbours: Neighbours) -> None:
    async with run_ready_generator(neighbours, channel="canary", max_batch_wait_us=20_000) as suite:
        asked = request()
        start = time.monotonic()
        await suite.stub.GenerateAds(asked, timeout=10, metadata=[("gr4ad-bucket", "0")])
        elapsed_us = 1e6 * (time.monotonic() - start)
        await infer(suite, "v2", [("gr4ad-bucket", "99")])
        lists = neighbours.rewards.lists
        await eventually(lambda: {asked.request_id, "v2"} <= set(lists), "both are logged")
    assert {stored.channel for stored in lists.values()} == {"canary"}
    assert [lists[request_id].bucket for request_id in (asked.request_id, "v2")] == [0, 99]
    # A batch of one waits for company before it is computed.
    assert 20_000 <= lists[asked.request_id].latency_us <= elapsed_us
    assert lists["v2"].latency_us >= 20_000


async def test_without_the_header_a_list_has_no_bucket(suite: Suite) -> None:
    asked = request()
    await suite.stub.GenerateAds(asked, timeout=10)
    await infer(suite, "v2", [])
    lists = suite.neighbours.rewards.lists
    await eventually(lambda: {asked.request_id, "v2"} <= set(lists), "both are logged")
    assert not any(stored.HasField("bucket") for stored in lists.values())
    assert {stored.channel for stored in lists.values()} == {"stable"}


@pytest.mark.parametrize("value", ["100", "-1", "4.5", "stable"])
async def test_a_bucket_out_of_range_is_refused_by_name(suite: Suite, value: str) -> None:
    metadata = [("gr4ad-bucket", value)]
    for call in (suite.stub.GenerateAds(request(), timeout=10, metadata=metadata), infer(suite, "v2", metadata)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"gr4ad-bucket: {value}: send the user's bucket once, an integer from 0 to 99" in refused.value.details()
    assert (await suite.status()).requests_answered == 0


async def test_a_bucket_sent_twice_is_refused(suite: Suite) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.stub.GenerateAds(request(), timeout=10, metadata=[("gr4ad-bucket", "1"), ("gr4ad-bucket", "2")])
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "gr4ad-bucket: 1, 2: send" in refused.value.details()


def test_only_plain_integers_are_buckets() -> None:
    assert [parse_bucket([str(bucket)]) for bucket in range(100)] == list(range(100))
    assert parse_bucket([]) is None
    for value in ("", " 1", "1 ", "+1", "0x1", "1e1", "٣", "²", "1\n"):
        with pytest.raises(InvalidArgumentError, match="^gr4ad-bucket: "):
            parse_bucket([value])


def test_an_http_request_has_no_deadline_and_perhaps_a_bucket() -> None:
    assert Arrival.of_headers({"gr4ad-bucket": "5"}).bucket == 5
    without = Arrival.of_headers({})
    assert (without.bucket, without.time_remaining_s) == (None, None)
    assert without.elapsed_us() > 0
