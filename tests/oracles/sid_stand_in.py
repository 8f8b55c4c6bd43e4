"""A SID service that is nothing but a list of ads: what readers of the catalogue see, without what makes it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.type.v1 import type_pb2

PART = 7


class SidStandIn(sid_pb2_grpc.SidServiceServicer):
    """Streams its entries, a few a message, and ends.

    Attributes:
        entries: The ads.
        fail_first: Calls that are refused as unavailable before one is answered.
        retired: Whether the codebook gives no catalogue any more.
    """

    def __init__(self, level_sizes: tuple[int, ...], entries: list[sid_pb2.CatalogEntry]) -> None:
        self.codebook = sid_pb2.Codebook(
            codebook_id="codebook", level_sizes=level_sizes, state=sid_pb2.CODEBOOK_STATE_ACTIVE
        )
        self.entries = entries
        self.fail_first = 0
        self.retired = False

    async def ReadCatalog(
        self, request: sid_pb2.ReadCatalogRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[sid_pb2.ReadCatalogResponse]:
        assert request.until_current
        if request.codebook_id not in ("", "codebook"):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"codebook_id: {request.codebook_id!r}: not registered")
        if self.retired:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "codebook_id: 'codebook' is retired")
        for start in range(0, len(self.entries), PART):
            yield sid_pb2.ReadCatalogResponse(codebook_id="codebook", entries=self.entries[start : start + PART])
            if self.fail_first:
                self.fail_first -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "away in the middle")
        yield sid_pb2.ReadCatalogResponse(codebook_id="codebook", cursor=1, snapshot_complete=True)

    async def ListCodebooks(
        self, request: sid_pb2.ListCodebooksRequest, context: grpc.aio.ServicerContext
    ) -> sid_pb2.ListCodebooksResponse:
        return sid_pb2.ListCodebooksResponse(codebooks=[self.codebook])


def entry(number: int, codes: tuple[int, ...], bid_micros: int = 1_000_000) -> sid_pb2.CatalogEntry:
    """An active ad `ad-<number>`."""
    return sid_pb2.CatalogEntry(
        ad_id=f"ad-{number}",
        sid=type_pb2.SemanticId(codes=codes),
        state=sid_pb2.AD_STATE_ACTIVE,
        bid_micros=bid_micros,
        advertiser_id="advertiser",
        conversion_type=sid_pb2.CONVERSION_TYPE_PURCHASE,
    )
