"""Puts the generator together and serves it on one port: the typed contract, the Open Inference Protocol, health."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import grpc
from gr4ad.generation.v1 import generation_pb2_grpc
from gr4ad.reward.v1 import reward_pb2_grpc
from gr4ad.sid.v1 import sid_pb2_grpc
from gr4ad.training.v1 import training_pb2_grpc
from gr4ad_runtime.app import STOP_HOOK_SECONDS, Lifecycle, serve
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.channels import open_channel
from kserve import ModelServer
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc

from ad_generator.batch_metrics import BatchMetrics
from ad_generator.batch_plan import Limits
from ad_generator.batcher import Batcher, Waiting
from ad_generator.bid_endpoint import BidEndpoint
from ad_generator.catalog_mirror import CatalogMirror
from ad_generator.engine import Engine, Generated, Query
from ad_generator.engine_status import EngineStatus
from ad_generator.generation import Generation
from ad_generator.kserve_model import GeneratorModel, OpenInferenceServicer
from ad_generator.list_sender import ListSender
from ad_generator.policy_follower import PolicyFollower
from ad_generator.policy_loader import PolicyLoader
from ad_generator.request_queue import RequestQueue
from ad_generator.result_cache import ResultCache
from ad_generator.servicer import GenerationServicer
from ad_generator.settings import AdGeneratorSettings

NAME: Final = "ad_generator"
SERVICES: Final = ("gr4ad.generation.v1.GenerationService", "inference.GRPCInferenceService")


async def serve_engine(settings: AdGeneratorSettings, model: GeneratorModel, kserve: ModelServer) -> int:
    """Serve until told to stop, and return the exit code.

    Args:
        settings: The generator's.
        model: The KServe model whose engine this is.
        kserve: The model server, whose data plane the Open Inference servicer asks.
    """

    async def build(server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        build_generator(settings, model, kserve, server, lifecycle)

    return await serve(NAME, settings, build, service_names=SERVICES)


def build_generator(
    settings: AdGeneratorSettings,
    model: GeneratorModel,
    kserve: ModelServer,
    server: grpc.aio.Server,
    lifecycle: Lifecycle,
) -> None:
    """Register the generator's services with a server and start its background tasks; see `serve_engine`."""
    # One thread each, so that neither kind of work waits for the other.
    inference, loading = _thread(lifecycle, "inference"), _thread(lifecycle, "loading")
    sid_channel, training_channel, reward_channel = (
        _channel(lifecycle, address)
        for address in (settings.sid_assigner_address, settings.rspo_trainer_address, settings.reward_logger_address)
    )
    sids = sid_pb2_grpc.SidServiceStub(sid_channel)
    engine = Engine(settings.beam_widths, settings.value_weight)
    limits = Limits(
        settings.max_batch_size, settings.max_batch_wait_us * 1e-6, settings.beam_scale_min, settings.beam_scale_max
    )
    metrics = BatchMetrics()
    queue = RequestQueue[Waiting[Query, Generated]](
        settings.beam_widths, limits, settings.queue_limit, metrics.record_refusal
    )
    metrics.watch(queue)
    batcher = Batcher[Query, Generated](engine.compute, inference, queue, metrics.record_batch)
    sender = ListSender(reward_pb2_grpc.RewardServiceStub(reward_channel), settings.list_queue_limit)
    cache = (
        ResultCache(settings.result_cache_seconds, settings.result_cache_entries, settings.result_cache_mb << 20)
        if settings.result_cache_seconds
        else None
    )
    generation = Generation(
        engine, batcher, sender, channel=settings.channel, default_budget_us=settings.latency_budget_us, cache=cache
    )

    def make_mirror(codebook_id: str, level_sizes: tuple[int, ...]) -> CatalogMirror:
        return CatalogMirror(sids, codebook_id, level_sizes)

    follower = PolicyFollower(
        training_pb2_grpc.TrainingServiceStub(training_channel),
        settings.channel,
        PolicyLoader(
            ArtifactStore(settings.artifact_store),
            Path(settings.policy_cache),
            settings.device,
            settings.compute_type,
            settings.torch_threads,
            len(settings.beam_widths),
        ),
        make_mirror,
        engine,
        loading,
        inference,
        limits,
        on_ready=partial(_take_traffic, lifecycle),
    )
    status = EngineStatus(engine, generation, follower, sender, settings.channel)
    status.register_metrics()

    generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(generation, status), server)
    grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
        OpenInferenceServicer(kserve.dataplane, kserve.model_repository_extension), server
    )
    model.generate = generation.generate
    model.bid = BidEndpoint(
        generation.generate,
        generation.advertiser_of,
        currency=settings.currency,
        margin_us=settings.bid_margin_us,
        default_budget_us=settings.latency_budget_us,
    ).post
    model.is_ready = lambda: lifecycle.ready
    model.ask_to_stop = lifecycle.stop

    lifecycle.background(batcher.run(), "batcher")
    lifecycle.background(follower.run(), "policy follower")
    _send_in_background(sender, lifecycle, settings.drain_seconds)


def _send_in_background(sender: ListSender, lifecycle: Lifecycle, drain_seconds: float) -> None:
    """Run the sender beyond the lifecycle's own background tasks, so that it can send what the last calls left."""
    sending = asyncio.create_task(sender.run(), name="list sender")

    async def watch() -> None:
        await asyncio.shield(sending)

    async def flush() -> None:
        await sender.flush(min(drain_seconds, STOP_HOOK_SECONDS - 1.0))
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending

    lifecycle.background(watch(), "list sender")
    lifecycle.on_stop(flush)


def _take_traffic(lifecycle: Lifecycle) -> None:
    if not lifecycle.ready:
        # Modules and catalogue stay: to search them for garbage would hold up requests for tenths of a second.
        gc.collect()
        gc.freeze()
    lifecycle.set_ready(True)


def _thread(lifecycle: Lifecycle, name: str) -> ThreadPoolExecutor:
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def shut_down() -> None:
        await asyncio.to_thread(executor.shutdown)

    lifecycle.on_stop(shut_down)
    return executor


def _channel(lifecycle: Lifecycle, address: str) -> grpc.aio.Channel:
    channel = open_channel(address)
    lifecycle.on_stop(channel.close)
    return channel
