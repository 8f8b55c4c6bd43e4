"""`SidService` over gRPC: translates and delegates."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import grpc
import structlog
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_runtime import semconv
from gr4ad_runtime.db import Database
from gr4ad_runtime.telemetry import current_traceparent
from opentelemetry import trace

from sid_assigner.ad_lookup import get_by_ad, get_by_ads, get_by_sid, list_ads
from sid_assigner.ad_update import update_ad
from sid_assigner.batch_creator import BatchCreator
from sid_assigner.codebook_drift import measure_drift
from sid_assigner.codebook_life import activate_codebook, register_codebook, retire_codebook
from sid_assigner.codebook_registry import CodebookRegistry
from sid_assigner.feed_reader import FeedReader
from sid_assigner.translation import (
    STATES,
    ad_sid_message,
    batch_of,
    catalog_message,
    codebook_message,
    page_start,
    page_token,
)

DEFAULT_PAGE_SIZE = 100
DEFAULT_DRIFT_SAMPLE = 2000

Context = grpc.aio.ServicerContext[Any, Any]


def _note(attributes: Mapping[str, str | int]) -> None:
    """Put what a call is about into its span and its line of the access log."""
    trace.get_current_span().set_attributes(attributes)
    structlog.contextvars.bind_contextvars(**attributes)


class SidServicer(sid_pb2_grpc.SidServiceServicer):
    """The service; errors are raised and become status codes in an interceptor."""

    def __init__(
        self, database: Database, registry: CodebookRegistry, creator: BatchCreator, reader: FeedReader
    ) -> None:
        """Serve ads of `database`."""
        self._database = database
        self._registry = registry
        self._creator = creator
        self._reader = reader

    async def BatchCreateAdSids(
        self, request: sid_pb2.BatchCreateAdSidsRequest, context: Context
    ) -> sid_pb2.BatchCreateAdSidsResponse:
        """Create ads with SIDs."""
        _note({semconv.REQUEST_ID: request.request_id, semconv.BATCH_SIZE: len(request.ads)})
        created = await self._creator.create(batch_of(request, current_traceparent()))
        _note({semconv.CATALOG_CURSOR: created.cursor})
        ad_sids = [ad_sid_message(ad_sid) for ad_sid in created.ad_sids]
        return sid_pb2.BatchCreateAdSidsResponse(ad_sids=ad_sids, catalog_cursor=created.cursor)

    async def GetAdSid(self, request: sid_pb2.GetAdSidRequest, context: Context) -> sid_pb2.GetAdSidResponse:
        """Look one ad up."""
        async with self._database.session() as session:
            codebook = await self._registry.find(session, request.codebook_id)
            if request.HasField("sid"):
                found = await get_by_sid(session, codebook, request.sid.codes)
            else:
                found = await get_by_ad(session, codebook, request.ad_id)
        return sid_pb2.GetAdSidResponse(ad_sid=ad_sid_message(found))

    async def BatchGetAdSids(
        self, request: sid_pb2.BatchGetAdSidsRequest, context: Context
    ) -> sid_pb2.BatchGetAdSidsResponse:
        """Look many ads up."""
        async with self._database.session() as session:
            codebook = await self._registry.find(session, request.codebook_id)
            found = await get_by_ads(session, codebook, request.ad_ids)
        return sid_pb2.BatchGetAdSidsResponse(ad_sids=[ad_sid_message(ad_sid) for ad_sid in found])

    async def ListAdSids(self, request: sid_pb2.ListAdSidsRequest, context: Context) -> sid_pb2.ListAdSidsResponse:
        """List ads, page by page."""
        after = page_start(request.page_token)
        async with self._database.session() as session:
            page = await list_ads(
                session,
                await self._registry.find(session, request.codebook_id),
                advertiser_id=request.advertiser_id,
                state=STATES[request.state],
                after=after,
                size=request.page_size or DEFAULT_PAGE_SIZE,
            )
        return sid_pb2.ListAdSidsResponse(
            ad_sids=[ad_sid_message(ad_sid) for ad_sid in page.ad_sids], next_page_token=page_token(page.last)
        )

    async def UpdateAd(self, request: sid_pb2.UpdateAdRequest, context: Context) -> sid_pb2.UpdateAdResponse:
        """Change a bid or a state."""
        updated = await update_ad(
            self._database,
            self._registry,
            request.ad_id,
            bid_micros=request.bid_micros if request.HasField("bid_micros") else None,
            state=STATES[request.state] if request.HasField("state") else None,
            traceparent=current_traceparent(),
        )
        _note({semconv.CATALOG_CURSOR: updated.cursor})
        return sid_pb2.UpdateAdResponse(ad_sid=ad_sid_message(updated.ad_sid), catalog_cursor=updated.cursor)

    async def ReadCatalog(
        self, request: sid_pb2.ReadCatalogRequest, context: Context
    ) -> AsyncIterator[sid_pb2.ReadCatalogResponse]:
        """Stream the catalogue."""
        _note({semconv.CODEBOOK_ID: request.codebook_id, semconv.CATALOG_CURSOR: request.cursor})
        reading = self._reader.read(request.codebook_id, request.cursor, until_current=request.until_current)
        async with aclosing(reading) as parts:
            async for part in parts:
                yield catalog_message(part)

    async def ListCodebooks(
        self, request: sid_pb2.ListCodebooksRequest, context: Context
    ) -> sid_pb2.ListCodebooksResponse:
        """List the codebooks."""
        async with self._database.session() as session:
            codebooks = await self._registry.list(session)
        return sid_pb2.ListCodebooksResponse(codebooks=[codebook_message(codebook) for codebook in codebooks])

    async def GetCodebookDrift(
        self, request: sid_pb2.GetCodebookDriftRequest, context: Context
    ) -> sid_pb2.GetCodebookDriftResponse:
        """Tell how the newest ads fit a codebook."""
        async with self._database.session() as session:
            registered = await self._registry.find(session, request.codebook_id)
            codebook = await self._registry.load(registered)
            drift = await measure_drift(session, codebook, request.sample_size or DEFAULT_DRIFT_SAMPLE)
        return sid_pb2.GetCodebookDriftResponse(codebook_id=registered.codebook_id, **asdict(drift))

    async def RegisterCodebook(
        self, request: sid_pb2.RegisterCodebookRequest, context: Context
    ) -> sid_pb2.RegisterCodebookResponse:
        """Give every ad a SID under a codebook."""
        _note({semconv.CODEBOOK_ID: request.codebook_id})
        codebook = await register_codebook(self._database, self._registry, request.codebook_id)
        return sid_pb2.RegisterCodebookResponse(codebook=codebook_message(codebook))

    async def ActivateCodebook(
        self, request: sid_pb2.ActivateCodebookRequest, context: Context
    ) -> sid_pb2.ActivateCodebookResponse:
        """Make a codebook the active one."""
        _note({semconv.CODEBOOK_ID: request.codebook_id})
        codebook = await activate_codebook(self._database, self._registry, request.codebook_id)
        return sid_pb2.ActivateCodebookResponse(codebook=codebook_message(codebook))

    async def RetireCodebook(
        self, request: sid_pb2.RetireCodebookRequest, context: Context
    ) -> sid_pb2.RetireCodebookResponse:
        """Give no further ad a SID under a codebook."""
        _note({semconv.CODEBOOK_ID: request.codebook_id})
        codebook = await retire_codebook(self._database, self._registry, request.codebook_id)
        return sid_pb2.RetireCodebookResponse(codebook=codebook_message(codebook))
