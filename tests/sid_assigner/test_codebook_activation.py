"""Codebooks: every ad gets a SID under a new one, and none under an old one moves."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import numpy as np
import pytest
from gr4ad.sid.v1 import sid_pb2
from sqlalchemy import text

from tests.sid_assigner.suite import Suite, make_ads


async def sids(suite: Suite, codebook_id: str, ad_ids: list[str]) -> list[tuple[int, ...]]:
    request = sid_pb2.BatchGetAdSidsRequest(ad_ids=ad_ids, codebook_id=codebook_id)
    return [tuple(ad_sid.sid.codes) for ad_sid in (await suite.stub.BatchGetAdSids(request)).ad_sids]


async def test_a_new_codebook_places_every_ad_and_moves_none(suite: Suite) -> None:
    ads = make_ads(90)
    ad_ids = [ad.ad_id for ad in ads]
    await suite.create("before", ads)
    old = await sids(suite, "small", ad_ids)
    activated = await suite.activate("other")
    assert activated.state == sid_pb2.CODEBOOK_STATE_ACTIVE
    assert list(activated.level_sizes) == [4, 4, 32]
    assert activated.embedding_dim == 8
    assert await sids(suite, "small", ad_ids) == old
    new = await sids(suite, "", ad_ids)
    assert len(set(new)) == len(ads)
    assert (np.max(new, axis=0) < [4, 4, 32]).all()

    after = await suite.create("after", make_ads(4, first=90))
    assert {ad_sid.codebook_id for ad_sid in after.ad_sids} == {"other"}
    assert len(await sids(suite, "small", [ad_sid.ad_id for ad_sid in after.ad_sids])) == 4
    listed = (await suite.stub.ListCodebooks(sid_pb2.ListCodebooksRequest())).codebooks
    assert [(codebook.codebook_id, codebook.state) for codebook in listed] == [
        ("other", sid_pb2.CODEBOOK_STATE_ACTIVE),
        ("small", sid_pb2.CODEBOOK_STATE_STANDBY),
    ]


async def test_activating_again_changes_nothing_and_going_back_moves_nothing(suite: Suite) -> None:
    await suite.create("before", make_ads(20))
    ad_ids = [f"ad-{number}" for number in range(20)]
    first = await suite.activate("other")
    placed = await sids(suite, "other", ad_ids)
    assert await suite.activate("other") == first
    back = await suite.activate("small")
    assert back.state == sid_pb2.CODEBOOK_STATE_ACTIVE
    assert await suite.activate("other") == first
    assert await sids(suite, "other", ad_ids) == placed


@pytest.mark.parametrize(
    ("codebook_id", "code", "message"),
    [
        ("nonesuch", grpc.StatusCode.NOT_FOUND, "codebook_id: 'nonesuch': publish it as codebooks/nonesuch"),
        ("../etc", grpc.StatusCode.INVALID_ARGUMENT, "codebook_id"),
        ("damaged", grpc.StatusCode.DATA_LOSS, "codebook_id: 'damaged': "),
        ("mislabelled", grpc.StatusCode.DATA_LOSS, "codebooks/mislabelled holds codebook 'small'"),
        ("tiny", grpc.StatusCode.RESOURCE_EXHAUSTED, "codebook_id: 'tiny': "),
        (
            "vectors-only",
            grpc.StatusCode.FAILED_PRECONDITION,
            "'vectors-only' has no text encoder, and ad 'ad-0' has no",
        ),
    ],
)
async def test_a_codebook_that_cannot_be_used_changes_nothing(
    suite: Suite, codebook_id: str, code: grpc.StatusCode, message: str
) -> None:
    await suite.create("before", make_ads(20))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.activate(codebook_id)
    assert refused.value.code() == code
    assert message in refused.value.details()
    listed = (await suite.stub.ListCodebooks(sid_pb2.ListCodebooksRequest())).codebooks
    assert [codebook.codebook_id for codebook in listed] == ["small"]
    async with suite.database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM sid.ad_sid")) == 20
    await suite.create("after", make_ads(2, first=20))


async def test_a_registered_codebook_must_stay_what_it_was(suite: Suite) -> None:
    folder = Path(suite.settings.artifact_store) / "codebooks" / "small"
    for file in (Path(suite.settings.artifact_store) / "codebooks" / "other").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["codebook_id"] = "small"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.activate("small")
    assert refused.value.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.DATA_LOSS)
    assert "'small'" in refused.value.details()
