"""The ads that a policy learns to write, as the SID assigner has them now."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import numpy as np
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_core.learning.sampling import AdTable
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.errors import DataLossError, FailedPreconditionError

from rspo_trainer.dependency import read_patiently
from rspo_trainer.settings import RspoTrainerSettings

CALL_TIMEOUT_S = 30.0
STREAM_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Catalogue:
    """All ads under a codebook, paused ones included: they too were chosen by users.

    Attributes:
        codebook_id: The codebook.
        level_sizes: Its codes per level.
        ads: The ads.
    """

    codebook_id: str
    level_sizes: tuple[int, ...]
    ads: AdTable


async def read_catalogue(channel: grpc.aio.Channel, codebook_id: str = "") -> Catalogue:
    """Read the catalogue under a codebook, the active one by default, from the SID assigner.

    Raises:
        FailedPreconditionError: It has no ads.
        DataLossError: Its SIDs do not fit its codebook.
        grpc.aio.AioRpcError: The SID assigner is away or has no codebook.
    """
    stub = sid_pb2_grpc.SidServiceStub(channel)
    entries: dict[str, sid_pb2.CatalogEntry] = {}
    request = sid_pb2.ReadCatalogRequest(codebook_id=codebook_id, until_current=True)
    async for part in stub.ReadCatalog(request, timeout=STREAM_TIMEOUT_S):
        codebook_id = part.codebook_id
        entries.update((entry.ad_id, entry) for entry in part.entries)
    if not entries:
        raise FailedPreconditionError(
            "catalogue", "no ads", "ingest some with `gr4ad ingest`, then create the run anew"
        )
    codebooks = (await stub.ListCodebooks(sid_pb2.ListCodebooksRequest(), timeout=CALL_TIMEOUT_S)).codebooks
    level_sizes = next((tuple(c.level_sizes) for c in codebooks if c.codebook_id == codebook_id), ())
    if any(len(entry.sid.codes) != len(level_sizes) for entry in entries.values()):
        problem = f"SIDs of other than the {len(level_sizes)} levels of codebook {codebook_id!r}"
        raise DataLossError("catalogue", problem, "look into the log of sid_assigner")
    sids = np.array([entry.sid.codes for entry in entries.values()], np.int64)
    if (sids >= np.array(level_sizes)).any():
        problem = f"codes up to {sids.max(axis=0).tolist()} under codebook {codebook_id!r} with levels {level_sizes}"
        raise DataLossError("catalogue", problem, "look into the log of sid_assigner")
    ads = AdTable(
        ad_ids=list(entries),
        sids=sids,
        bid_micros=np.fromiter((entry.bid_micros for entry in entries.values()), np.int64, len(entries)),
        conversion_types=[_conversion_type(entry.conversion_type) for entry in entries.values()],
    )
    return Catalogue(codebook_id, level_sizes, ads)


async def catalogue_of(settings: RspoTrainerSettings, codebook_id: str = "") -> Catalogue:
    """Read the catalogue from the SID assigner that the settings name, which may be away for a while.

    Args:
        settings: Name the SID assigner.
        codebook_id: Codebook of the SIDs; empty for the active one.

    Raises:
        UnavailableError: It did not come back in time.
        FailedPreconditionError: It has no ads, or refuses.
        DataLossError: Its SIDs do not fit its codebook.
    """
    address = settings.sid_assigner_address
    async with open_channel(address) as channel:
        return await read_patiently(
            lambda: read_catalogue(channel, codebook_id),
            service="sid_assigner",
            address=address,
            variable="GR4AD_SID_ASSIGNER_ADDRESS",
            wait_s=settings.dependency_wait_seconds,
        )


def _conversion_type(value: sid_pb2.ConversionType.ValueType) -> str:
    return sid_pb2.ConversionType.Name(value).removeprefix("CONVERSION_TYPE_").lower()
