"""The Open Inference Protocol v2 over a real channel: the same answers as the typed contract, the same manners."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from ad_generator.open_inference import INPUTS
from gr4ad.generation.v1 import generation_pb2
from gr4ad.type.v1 import type_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kserve import InferInput, InferRequest, InferResponse
from kserve.protocol.grpc import grpc_predict_v2_pb2 as v2
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.ad_generator.neighbours import eventually
from tests.ad_generator.policies import publish
from tests.ad_generator.suite import Neighbours, Suite, request, run_generator

REPOSITORY = Path(__file__).parents[2]
HISTORY = ["ad-0-1-2", "gone", "ad-3-4-5"]
TIMES = [1_690_000_000.5, float("nan"), 1_699_999_990.0]


def typed(count: int = 10) -> generation_pb2.GenerateAdsRequest:
    asked = request(HISTORY, count, request_id="typed")
    for event, behavior, time in zip(asked.user_context.history, (1, 2, 3), TIMES, strict=True):
        event.behavior = behavior
        if time == time:
            event.event_time.FromNanoseconds(int(time * 1e9))
    asked.user_context.features["hour"] = "17"
    return asked


def tensors(raw: bool, **changes: InferInput | None) -> list[InferInput]:
    made = {
        "history_ad_ids": tensor("history_ad_ids", "BYTES", np.array(HISTORY, np.object_), raw),
        "history_behaviors": tensor("history_behaviors", "INT32", np.array([1, 2, 3], np.int32), raw),
        "history_event_times": tensor("history_event_times", "FP64", np.array(TIMES), raw),
        "candidate_count": tensor("candidate_count", "INT32", np.array([10], np.int32), raw),
        "request_time": tensor("request_time", "INT64", np.array([1_700_000_000], np.int64), raw),
        "feature_names": tensor("feature_names", "BYTES", np.array(["hour"], np.object_), raw),
        "feature_values": tensor("feature_values", "BYTES", np.array(["17"], np.object_), raw),
        **changes,
    }
    return [one for one in made.values() if one is not None]


def tensor(name: str, datatype: str, values: np.ndarray, raw: bool = True) -> InferInput:
    made = InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=raw)
    if not raw and datatype == "BYTES":  # the client library leaves text as text, which gRPC cannot carry
        made.data = [value.encode() for value in made.data]
    return made


async def infer(suite: Suite, inputs: list[InferInput], model: str = "gr4ad", timeout: float = 10) -> InferResponse:
    message = InferRequest(model, inputs, request_id="v2").to_grpc()
    return InferResponse.from_grpc(await GRPCInferenceServiceStub(suite.client).ModelInfer(message, timeout=timeout))


@pytest.mark.parametrize("raw", [True, False])
async def test_both_protocols_give_the_same_candidates(suite: Suite, raw: bool) -> None:
    expected = await suite.stub.GenerateAds(typed())
    answer = await infer(suite, tensors(raw))
    outputs = {output.name: output.as_numpy() for output in answer.outputs}
    assert [ad_id.decode() for ad_id in outputs["ad_ids"]] == [ad.ad_id for ad in expected.candidates]
    assert outputs["sids"].tolist() == [list(ad.sid.codes) for ad in expected.candidates]
    assert outputs["log_probs"].tolist() == [ad.log_prob for ad in expected.candidates]
    assert outputs["predicted_ecpm_micros"].tolist() == [ad.predicted_ecpm_micros for ad in expected.candidates]
    assert {output.name: output.datatype for output in answer.outputs} == {
        "ad_ids": "BYTES",
        "sids": "INT32",
        "log_probs": "FP32",
        "predicted_ecpm_micros": "INT64",
    }
    assert answer.id == "v2"
    assert answer.parameters["policy_id"].string_param == "first"
    assert answer.parameters["skipped_history_events"].int64_param == expected.skipped_history_events == 1
    assert answer.parameters["beam_widths"].string_param == "3-6-10"
    assert answer.parameters["beam_constrained_by"].string_param == "CONSTRAINT_SCHEDULE"
    rewards = suite.neighbours.rewards
    await eventually(lambda: {"v2", "typed"} <= set(rewards.lists), "both are logged")
    assert list(rewards.lists["v2"].user_context.history) == list(typed().user_context.history)


async def test_the_example_of_the_readme_works(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, rest = (REPOSITORY / "services" / "ad_generator" / "README.md").read_text().partition("```python\n")
    example = rest.partition("```")[0].replace("B0009RF9DW", "ad-0-1-2").replace("127.0.0.1:50052", suite.address)
    capsys.readouterr()
    await eval(compile(example, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), {})
    expected = await suite.ask(["ad-0-1-2"], count=10)
    printed = capsys.readouterr().out
    assert all(f"b'{ad.ad_id}'" in printed for ad in expected.candidates)


async def test_a_cold_start_without_candidates_has_empty_tensors(neighbours: Neighbours) -> None:
    neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
    async with run_generator(neighbours) as suite:
        await suite.serves("first")
        none = {
            "history_ad_ids": tensor("history_ad_ids", "BYTES", np.array([], np.object_)),
            "history_behaviors": tensor("history_behaviors", "INT32", np.array([], np.int32)),
            "history_event_times": None,
            "cold_start": tensor("cold_start", "BOOL", np.array([True])),
        }
        answer = await infer(suite, tensors(True, **none))
        assert [list(output.shape) for output in answer.outputs] == [[0], [0, 3], [0], [0]]


def _input(name: str, datatype: str, values: object, dtype: type) -> dict[str, InferInput]:
    return {name: tensor(name, datatype, np.array(values, dtype))}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"history_ad_ids": None}, "inputs.history_ad_ids: missing"),
        ({"candidate_count": None}, "inputs.candidate_count: missing"),
        (_input("history_behaviors", "INT32", [1, 2], np.int32), "inputs.history_behaviors: 2 values"),
        (_input("history_behaviors", "INT32", [1, 2, 0], np.int32), "history[2].behavior"),
        (_input("history_behaviors", "INT64", [1, 2, 2**40], np.int64), "give 1 (impression)"),
        (_input("history_behaviors", "FP32", [1, 2, 3], np.float32), "send it as INT32 or INT64"),
        (_input("history_event_times", "FP64", [1.0], np.float64), "inputs.history_event_times: 1 values"),
        (_input("history_event_times", "FP64", [1.0, 1e300, 2.0], np.float64), "give Unix seconds"),
        (_input("candidate_count", "INT32", [[5]], np.int32), "give shape [1]"),
        (_input("candidate_count", "INT32", [5, 5], np.int32), "give shape [1]"),
        (_input("candidate_count", "INT32", [-1], np.int32), "give a number from 0"),
        (_input("candidate_count", "INT32", [0], np.int32), "candidate_count"),
        (_input("candidate_count", "INT32", [513], np.int32), "candidate_count"),
        (_input("popularity", "INT32", [5], np.int32), "inputs.popularity: unknown"),
        (_input("feature_values", "BYTES", ["a", "b"], np.object_), "inputs.feature_values: 2 values"),
        (_input("user_id", "BYTES", [b"\xff"], np.object_), "send UTF-8"),
        (_input("latency_budget_us", "INT64", [60_000_001], np.int64), "latency_budget_us"),
    ],
)
async def test_wrong_tensors_are_refused_by_name(suite: Suite, change: dict[str, InferInput | None], said: str) -> None:
    with pytest.raises(AioRpcError) as refused:
        await infer(suite, tensors(True, **change))
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT
    assert said in refused.value.details()


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x09\x00\x00\x00ab"])
async def test_torn_raw_content_is_refused(suite: Suite, content: bytes) -> None:
    message = InferRequest("gr4ad", tensors(True), request_id="torn").to_grpc()
    message.raw_input_contents[0] = content
    with pytest.raises(AioRpcError) as refused:
        await GRPCInferenceServiceStub(suite.client).ModelInfer(message, timeout=10)
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT
    assert "inputs.history_ad_ids" in refused.value.details()


async def test_an_unmatched_number_of_raw_contents_is_refused(suite: Suite) -> None:
    message = InferRequest("gr4ad", tensors(True), request_id="torn").to_grpc()
    del message.raw_input_contents[-1]
    with pytest.raises(AioRpcError) as refused:
        await GRPCInferenceServiceStub(suite.client).ModelInfer(message, timeout=10)
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT


async def test_an_unknown_model_is_named(suite: Suite) -> None:
    stub = GRPCInferenceServiceStub(suite.client)
    for call in (
        infer(suite, tensors(True), model="nobody"),
        stub.ModelReady(v2.ModelReadyRequest(name="nobody")),
        stub.ModelMetadata(v2.ModelMetadataRequest(name="nobody")),
    ):
        with pytest.raises(AioRpcError) as refused:
            await call
        assert refused.value.code() is StatusCode.NOT_FOUND
        assert "model_name: nobody" in refused.value.details()


async def test_a_deadline_reaches_the_queue(suite: Suite) -> None:
    budget = {"latency_budget_us": tensor("latency_budget_us", "INT64", np.array([1], np.int64))}
    with pytest.raises(AioRpcError) as late:
        await infer(suite, tensors(True, **budget))
    assert late.value.code() is StatusCode.DEADLINE_EXCEEDED


async def test_nobody_loads_or_unloads_the_model_from_outside(suite: Suite) -> None:
    stub = GRPCInferenceServiceStub(suite.client)
    for call in (
        stub.RepositoryModelUnload(v2.RepositoryModelUnloadRequest(model_name="gr4ad")),
        stub.RepositoryModelLoad(v2.RepositoryModelLoadRequest(model_name="gr4ad")),
    ):
        with pytest.raises(AioRpcError) as refused:
            await call
        assert refused.value.code() is StatusCode.FAILED_PRECONDITION
        assert "ActivatePolicy" in refused.value.details()
    assert (await infer(suite, tensors(True))).outputs


async def test_metadata_names_the_tensors(suite: Suite) -> None:
    stub = GRPCInferenceServiceStub(suite.client)
    metadata = await stub.ModelMetadata(v2.ModelMetadataRequest(name="gr4ad"))
    assert [one.name for one in metadata.inputs] == list(INPUTS)
    assert {one.name: list(one.shape) for one in metadata.outputs}["sids"] == [-1, 3]
    assert (await stub.ServerLive(v2.ServerLiveRequest())).live


async def test_every_probe_tells_readiness(neighbours: Neighbours) -> None:
    async with run_generator(neighbours) as suite:
        stub, health = GRPCInferenceServiceStub(suite.client), health_pb2_grpc.HealthStub(suite.client)

        async def ready() -> list[bool]:
            services = ("", "gr4ad.generation.v1.GenerationService", "inference.GRPCInferenceService")
            told = [await health.Check(health_pb2.HealthCheckRequest(service=service)) for service in services]
            return [
                (await stub.ServerReady(v2.ServerReadyRequest())).ready,
                (await stub.ModelReady(v2.ModelReadyRequest(name="gr4ad"))).ready,
                *(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in told),
            ]

        assert await ready() == [False] * 5
        with pytest.raises(AioRpcError) as refused:
            await infer(suite, tensors(True))
        assert refused.value.code() is StatusCode.UNAVAILABLE
        neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
        await suite.serves("first")
        assert await ready() == [True] * 5


async def test_the_typed_history_has_the_behaviours_of_the_tensors() -> None:
    assert [event.behavior for event in typed().user_context.history] == [
        type_pb2.BEHAVIOR_IMPRESSION,
        type_pb2.BEHAVIOR_CLICK,
        type_pb2.BEHAVIOR_CONVERSION,
    ]
