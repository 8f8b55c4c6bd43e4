"""A failed call, said to the person at the terminal."""

from __future__ import annotations

from typing import NoReturn

import grpc
import typer
from rich.console import Console


def describe(error: grpc.aio.AioRpcError, address: str) -> str:
    """Return what went wrong and what helps."""
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return f"address: {address}: no answer ({error.details()}): start the suite with `gr4ad up` or set --address"
    return error.details() or error.code().name


def leave(message: str, code: int = 1) -> NoReturn:
    """End the command with a message on stderr."""
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)
