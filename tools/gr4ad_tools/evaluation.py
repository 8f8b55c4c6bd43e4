"""Score a policy as it is served: ask for every held-out user over gRPC, and look for the target in the list."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc
from gr4ad.type.v1 import type_pb2
from gr4ad_core.metrics.ranking import ndcg_at_k, recall_at_k
from numpy.typing import NDArray

from gr4ad_tools.figures import Figure

KS = (5, 10)
CONCURRENCY = 16
REQUEST_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class ScoredLists:
    """What the generator returned for held-out users.

    Attributes:
        ranked: Item indices by falling log-probability, [M, k]; −1 where the list was shorter or the request failed.
        ads: The same lists in the order the generator returned them, with log_prob and predicted eCPM.
        failures: Failed requests by status code.
    """

    ranked: NDArray[np.int64]
    ads: list[list[type_pb2.ScoredAd]]
    failures: Counter[str]


async def score(
    channel: grpc.aio.Channel,
    contexts: Sequence[type_pb2.UserContext],
    item_ids: Sequence[str],
    *,
    run_id: str,
    candidate_count: int = 20,
    on_answer: Callable[[], None] = lambda: None,
) -> ScoredLists:
    """Ask for every context once.

    Args:
        channel: Channel to the generator.
        contexts: Held-out users.
        item_ids: Vocabulary of the item indices.
        run_id: Prefix of the request ids; unique per run.
        candidate_count: Ads wanted per request.
        on_answer: Called after each request.
    """
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    index = {item_id: number for number, item_id in enumerate(item_ids)}
    ranked = np.full((len(contexts), max(KS)), -1, dtype=np.int64)
    ads: list[list[type_pb2.ScoredAd]] = [[] for _ in contexts]
    failures: Counter[str] = Counter()
    queue = iter(range(len(contexts)))

    async def worker() -> None:
        for number in queue:
            request = generation_pb2.GenerateAdsRequest(
                request_id=f"{run_id}-{number}", user_context=contexts[number], candidate_count=candidate_count
            )
            try:
                response = await stub.GenerateAds(request, timeout=REQUEST_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                failures[error.code().name] += 1
            else:
                ads[number] = list(response.candidates)
                best = sorted(response.candidates, key=lambda ad: -ad.log_prob)[: max(KS)]
                ranked[number, : len(best)] = [index.get(ad.ad_id, -1) for ad in best]
            on_answer()

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return ScoredLists(ranked, ads, failures)


def ranking_figures(ranked: NDArray[np.int64], targets: NDArray[np.int64], prefix: str = "") -> dict[str, Figure]:
    """Return recall and NDCG at 5 and 10 of ranked item indices [M, k] against targets [M], as figures."""
    n = len(targets)
    figures = {}
    for name, values in (("recall", recall_at_k(ranked, targets, KS)), ("ndcg", ndcg_at_k(ranked, targets, KS))):
        for k in KS:
            figures[f"{prefix}{name}@{k}"] = Figure(float(values[k]), "", n)
    return figures
