"""What the engine serves and has done: for GetEngineStatus and as metrics."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from gr4ad.generation.v1 import generation_pb2
from gr4ad_runtime import semconv
from gr4ad_runtime.telemetry import meter
from opentelemetry.metrics import Meter

from ad_generator.batch_metrics import observe
from ad_generator.batcher import Batched
from ad_generator.engine import Engine, Generated
from ad_generator.generation import Generation
from ad_generator.list_sender import ListSender
from ad_generator.policy_follower import PolicyFollower
from ad_generator.result_cache import ResultCache
from ad_generator.shared_computation import SharedComputations


class EngineStatus:
    """Reads the counters of the engine's parts."""

    def __init__(
        self, engine: Engine, generation: Generation, follower: PolicyFollower, sender: ListSender, channel: str
    ) -> None:
        """Read from these parts, from now on."""
        self._engine = engine
        self._generation = generation
        self._follower = follower
        self._sender = sender
        self._channel = channel
        self._start_time = Timestamp()
        self._start_time.GetCurrentTime()

    def message(self) -> generation_pb2.GetEngineStatusResponse:
        """Return the status of this moment."""
        status = generation_pb2.GetEngineStatusResponse(
            channel=self._channel,
            policy_swaps=self._follower.swaps,
            refused_policy=self._follower.refused,
            requests_answered=self._generation.answered,
            lists_sent=self._sender.sent,
            lists_dropped=self._sender.dropped,
            lists_queued=self._sender.queued,
            start_time=self._start_time,
        )
        state = self._engine.state
        if state is not None:
            status.policy.CopyFrom(state.policy.ref)
            status.live_ads = len(state.mirror.table.live_slots)
            status.catalog_cursor = state.mirror.cursor
        cache, computations = self._generation.cache, self._generation.computations
        if cache is not None:
            status.result_cache.CopyFrom(
                generation_pb2.ResultCacheStatus(
                    entries=len(cache),
                    hits=cache.hits,
                    shared=computations.shared,
                    misses=computations.own,
                    stale=cache.stale,
                )
            )
        return status

    def register_metrics(self) -> None:
        """Offer the counters to the metrics exporter, which reads them in a thread of its own."""
        instruments = meter(__name__)

        def live_ads() -> int:
            return 0 if self._engine.state is None else len(self._engine.state.mirror.table.live_slots)

        for name, unit, description, read in (
            (semconv.METRIC_LIVE_ADS, "{ad}", "Live ads in the index.", live_ads),
            (semconv.METRIC_LISTS_QUEUED, "{list}", "Served lists waiting to be sent.", lambda: self._sender.queued),
        ):
            instruments.create_observable_gauge(name, [observe(read)], unit, description)
        for name, unit, description, read in (
            (semconv.METRIC_POLICY_SWAPS, "{policy}", "Policies swapped in.", lambda: self._follower.swaps),
            (semconv.METRIC_POLICIES_REFUSED, "{policy}", "Policies refused.", lambda: self._follower.refusals),
            (semconv.METRIC_LISTS_SENT, "{list}", "Lists accepted by the reward log.", lambda: self._sender.sent),
            (semconv.METRIC_LISTS_DROPPED, "{list}", "Served lists given up.", lambda: self._sender.dropped),
        ):
            instruments.create_observable_counter(name, [observe(read)], unit, description)
        if self._generation.cache is not None:
            _register_cache(instruments, self._generation.cache, self._generation.computations)


def _register_cache(
    instruments: Meter, cache: ResultCache, computations: SharedComputations[Batched[Generated]]
) -> None:
    entries = "Answers kept in the result cache."
    instruments.create_observable_gauge(
        semconv.METRIC_CACHE_ENTRIES, [observe(lambda: len(cache))], "{answer}", entries
    )
    for name, unit, description, read in (
        (semconv.METRIC_CACHE_HITS, "{request}", "Requests answered from the cache.", lambda: cache.hits),
        (semconv.METRIC_CACHE_SHARED, "{request}", "Requests answered with an equal one.", lambda: computations.shared),
        (semconv.METRIC_CACHE_MISSES, "{request}", "Requests computed.", lambda: computations.own),
        (semconv.METRIC_CACHE_STALE, "{answer}", "Answers dropped when asked for.", lambda: cache.stale),
    ):
        instruments.create_observable_counter(name, [observe(read)], unit, description)
