"""GenerationService over gRPC: translates and delegates."""

from __future__ import annotations

import structlog
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc

from ad_generator.arrival import Arrival, Context
from ad_generator.engine_status import EngineStatus
from ad_generator.generation import Generation


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Answers the calls of GenerationService."""

    def __init__(self, generation: Generation, status: EngineStatus) -> None:
        """Serve what `generation` generates."""
        self._generation = generation
        self._status = status

    async def GenerateAds(
        self, request: generation_pb2.GenerateAdsRequest, context: Context
    ) -> generation_pb2.GenerateAdsResponse:
        """Return live ads for one user."""
        structlog.contextvars.bind_contextvars(request_id=request.request_id)
        return await self._generation.generate(request, Arrival.of_call(context))

    async def GetEngineStatus(
        self, request: generation_pb2.GetEngineStatusRequest, context: Context
    ) -> generation_pb2.GetEngineStatusResponse:
        """Tell what the engine serves."""
        return self._status.message()
