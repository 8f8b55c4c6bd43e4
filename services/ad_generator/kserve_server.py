"""KServe's model server around the suite's own gRPC server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Final

import grpc
import uvicorn
from fastapi import Request
from fastapi.responses import JSONResponse
from gr4ad_runtime.errors import AddressInUseError, Gr4adError
from kserve import ModelServer
from kserve.model_server import app
from kserve.protocol.rest.server import RESTServer
from starlette.responses import Response

from ad_generator.bid_endpoint import PATH
from ad_generator.kserve_model import ChannelRepository, GeneratorModel

HTTP_STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.CONFLICT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}


class GeneratorServer(ModelServer):  # type: ignore[misc]  # kserve is untyped
    """A model server whose gRPC side is its model's engine.

    KServe's own gRPC server takes no second service, no health and no tracing, and its REST server listens on every
    address; so the first is off, the second is optional and stays on the configured address, and the process's signals
    are the engine's.
    """

    def __init__(self, host: str, rest_port: int) -> None:
        """Make a server.

        Args:
            host: Address of the REST server.
            rest_port: Its port; 0 for no REST server.
        """
        super().__init__(
            http_port=rest_port, enable_grpc=False, registered_models=ChannelRepository(), enable_latency_logging=False
        )
        self._host = host
        self.exit_code = 0

    def start(self, models: list[GeneratorModel]) -> None:
        """Serve until the model's engine ends; its exit code is then in `exit_code`.

        Raises:
            AddressInUseError: The REST server's port is taken.
        """
        self._register_and_check_atleast_one_model_is_ready(models)
        if self.http_port:
            self._rest_server = RestServer(self.dataplane, self.model_repository_extension, self._host, self.http_port)
            app.add_route(PATH, partial(_bid, models[0]), methods=["POST"])
            self.servers.append(self._rest_server.start())
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        engine, *others = (asyncio.ensure_future(server) for server in self.servers)
        try:
            self.exit_code = await engine
        finally:
            if self._rest_server is not None:
                self._rest_server.stop()
            await asyncio.gather(*others)

    def stop(self, sig: int) -> None:
        """Drain and end."""
        for model in self.registered_models.get_models().values():
            model.stop()


class RestServer(RESTServer):  # type: ignore[misc]  # kserve is untyped
    """KServe's REST server on one address, leaving the process's signals alone."""

    def __init__(self, data_plane: object, repository: object, host: str, port: int) -> None:
        """Bind to an address.

        Raises:
            AddressInUseError: The port is taken.
        """
        super().__init__("kserve.model_server:app", data_plane, repository, port)
        self._server = _Uvicorn(self.config)
        try:
            self._socket = socket.create_server((host, port))
        except OSError as error:
            raise AddressInUseError(
                "rest_port", f"{host}:{port}", f"{error.strerror}: stop what listens there, or set GR4AD_REST_PORT"
            ) from error

    async def start(self) -> None:
        """Serve until `stop`."""
        self.create_application()
        app.add_exception_handler(Gr4adError, _answer_error)
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Finish the calls under way and end."""
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they belong to the engine's server


async def _bid(model: GeneratorModel, request: Request) -> Response:
    return Response(status_code=HTTPStatus.NO_CONTENT) if model.bid is None else await model.bid(request)


async def _answer_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Gr4adError)
    status = HTTP_STATUSES.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)
    return JSONResponse({"error": error.message}, status_code=status)
