"""The generator as a KServe model, and KServe's servicer and repository with the suite's manners."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from gr4ad.generation.v1 import generation_pb2
from gr4ad_runtime.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from gr4ad_runtime.validation import validate
from kserve import InferRequest, InferResponse, Model, ModelRepository
from kserve.errors import InvalidInput, ModelNotFound
from kserve.protocol.grpc import grpc_predict_v2_pb2 as v2
from kserve.protocol.grpc.servicer import InferenceServicer
from starlette.requests import Request
from starlette.responses import Response

from ad_generator.arrival import Arrival, Context
from ad_generator.open_inference import input_types, output_types, to_message, to_tensors

Generate = Callable[[generation_pb2.GenerateAdsRequest, Arrival], Awaitable[generation_pb2.GenerateAdsResponse]]

_arrival: ContextVar[Arrival | None] = ContextVar("arrival", default=None)
"""Arrival of the gRPC call under way; None for a request of the REST server."""


class GeneratorModel(Model):  # type: ignore[misc]  # kserve is untyped
    """What KServe registers, probes and asks for predictions; its engine is the suite's own server."""

    def __init__(self, name: str, n_levels: int, serve: Callable[[GeneratorModel], Awaitable[int]]) -> None:
        """Make the model.

        Args:
            name: Its name in the protocol.
            n_levels: SID levels.
            serve: Runs the server until it is told to stop and returns the exit code; sets `generate`, `bid`,
                `is_ready` and `ask_to_stop` of this model once it can.
        """
        super().__init__(name)
        self.engine = True
        self.ready = True  # registered from the start; `healthy` tells whether it answers
        self.generate: Generate | None = None
        self.bid: Callable[[Request], Awaitable[Response]] | None = None
        self.is_ready: Callable[[], bool] = lambda: False
        self.ask_to_stop: Callable[[], None] = lambda: None
        self._n_levels = n_levels
        self._serve = serve

    async def start_engine(self) -> int:
        """Serve until told to stop; returns the exit code."""
        return await self._serve(self)

    def stop(self) -> None:
        """Drain: the server stops taking calls, finishes those under way, and ends."""
        self.ask_to_stop()

    def load(self) -> bool:
        """Tell whether the model answers; policies are loaded by their channel."""
        return self.is_ready()

    async def healthy(self) -> bool:
        """Tell whether a policy and its catalogue are loaded."""
        return self.is_ready()

    async def predict(
        self, payload: Any, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> InferResponse:
        """Answer an Open Inference request as GenerateAds would."""
        if not isinstance(payload, InferRequest):
            raise InvalidArgumentError("request", type(payload).__name__, "use version 2 of the protocol")
        if self.generate is None:
            raise FailedPreconditionError("server", "starting", "retry once the model is ready")
        arrival = _arrival.get() or Arrival.of_headers(headers or {})
        message = to_message(payload)
        validate(message)
        return to_tensors(payload, await self.generate(message, arrival), message.request_id)

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return the input tensors."""
        return input_types()

    def get_output_types(self) -> list[dict[str, Any]]:
        """Return the output tensors."""
        return output_types(self._n_levels)


class ChannelRepository(ModelRepository):  # type: ignore[misc]  # kserve is untyped
    """A repository whose models come and go by their policy channel only, never by a caller of the protocol."""

    REMEDY: Final = "models follow their channel: use TrainingService.ActivatePolicy"

    def load(self, name: str) -> bool:
        """Refuse."""
        raise FailedPreconditionError("model_name", name, self.REMEDY)

    def unload(self, name: str) -> None:
        """Refuse."""
        raise FailedPreconditionError("model_name", name, self.REMEDY)


class OpenInferenceServicer(InferenceServicer):  # type: ignore[misc]  # kserve is untyped
    """KServe's servicer; its errors become the suite's, and readiness and deadlines are told truly."""

    async def ServerReady(self, request: v2.ServerReadyRequest, context: Context) -> v2.ServerReadyResponse:
        """Tell whether every model is ready; KServe's own answer is always yes."""
        registry = self._data_plane.model_registry
        ready = [await registry.is_model_ready(name) for name in registry.get_models()]
        return v2.ServerReadyResponse(ready=all(ready))

    async def ModelReady(self, request: v2.ModelReadyRequest, context: Context) -> v2.ModelReadyResponse:
        """Tell whether a model is ready."""
        with _suite_errors(request.name):
            return await super().ModelReady(request, context)

    async def ModelMetadata(self, request: v2.ModelMetadataRequest, context: Context) -> v2.ModelMetadataResponse:
        """Tell a model's tensors."""
        with _suite_errors(request.name):
            return await super().ModelMetadata(request, context)

    async def ModelInfer(self, request: v2.ModelInferRequest, context: Context) -> v2.ModelInferResponse:
        """Answer a request."""
        _arrival.set(Arrival.of_call(context))  # a call has a task, hence a context, of its own
        with _suite_errors(request.model_name):
            return await super().ModelInfer(request, context)

    async def RepositoryModelLoad(
        self, request: v2.RepositoryModelLoadRequest, context: Context
    ) -> v2.RepositoryModelLoadResponse:
        """Refuse."""
        raise FailedPreconditionError("model_name", request.model_name, ChannelRepository.REMEDY)

    async def RepositoryModelUnload(
        self, request: v2.RepositoryModelUnloadRequest, context: Context
    ) -> v2.RepositoryModelUnloadResponse:
        """Refuse."""
        raise FailedPreconditionError("model_name", request.model_name, ChannelRepository.REMEDY)


@contextmanager
def _suite_errors(model_name: str) -> Iterator[None]:
    try:
        yield
    except ModelNotFound as error:
        raise NotFoundError("model_name", model_name, "ask for the name in GR4AD_MODEL_NAME") from error
    except InvalidInput as error:
        raise InvalidArgumentError("request", error.reason, "send tensors as README.md lists them") from error
