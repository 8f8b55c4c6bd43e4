"""How long a committed change takes to show: a new ad until it is generated, a paused ad until it is gone.

Both are measured from outside, on what the generator returns. A new ad is a further campaign of a creative, an ad of
its own for the same account and kind of conversion, and of a few users that one is probed whom the model is surest to
show that creative: the new ad shares the semantic codes and so has every chance to be generated as soon as the index
holds it, however improbable its own business code still is.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
from gr4ad.generation.v1 import generation_pb2_grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.type.v1 import type_pb2

from gr4ad_tools.traffic import Answer, ask

CANDIDATES = 64  # so many that presence seldom hangs on the ranking
WIDE_CANDIDATES = 512  # for an ad that is not among them: wide beams hold every child of every likely prefix
USERS_ASKED = 16  # per probe, to find the surest of them
NARROW_LOOKS = 2  # before the wide ones
POLL_S = 0.1  # between two looks for a new ad: a delay is measured as up to this much longer than it was
GIVE_UP_S = 5.0
WATCH_PAUSED_S = 1.2
PAUSED_POLL_S = 0.5  # between two looks for a paused ad, which all of the traffic is searched for as well
# After this long a paused ad must be gone from every answer to a request sent since.
PAUSE_LIMIT_S = 1.0


@dataclass
class LiveIndexDelays:
    """Delays of the probes; times of pauses are of the monotonic clock, in seconds."""

    insert_ms: list[float] = field(default_factory=list)
    pause_ms: list[float] = field(default_factory=list)
    never_generated: int = 0
    paused_at: dict[str, float] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)


async def probe(
    sid_channel: grpc.aio.Channel,
    generator_channel: grpc.aio.Channel,
    visits: Sequence[type_pb2.UserContext],
    ads: Mapping[str, sid_pb2.Ad],
    *,
    probes: int,
    run_id: str,
    on_probe: Callable[[], object] = lambda: None,
) -> LiveIndexDelays:
    """Insert ads, one after the other, and pause each, while other traffic flows.

    Args:
        sid_channel: Channel to the SID assigner.
        generator_channel: Channel to the generator.
        visits: Users to probe with; each probe asks the next few.
        ads: Content of the catalogue's ads, by id; the new ads are made from it.
        probes: How many ads to insert and pause.
        run_id: Prefix of the new ads' ids; unique per run.
        on_probe: Called after each probe.
    """
    sids = sid_pb2_grpc.SidServiceStub(sid_channel)
    generator = generation_pb2_grpc.GenerationServiceStub(generator_channel)
    delays = LiveIndexDelays()

    probed: set[str] = set()

    async def look(visit: int, name: str, count: int) -> Answer | None:
        return await ask(generator, visits[visit], f"{run_id}-{name}", count, visit, delays.failures)

    async def surest(number: int) -> tuple[str, int] | None:
        """Return the likeliest of the known ads that are not probed yet, and the user it is likeliest for."""
        asked = [(number * USERS_ASKED + place) % len(visits) for place in range(USERS_ASKED)]
        answers = [await look(visit, f"{number}-first-{place}", CANDIDATES) for place, visit in enumerate(asked)]
        found = [
            (log_prob, ad_id, answer.visit)
            for answer in answers
            if answer is not None
            for log_prob, ad_id in zip(answer.log_probs, answer.ad_ids, strict=True)
            if ad_id in ads and ad_id not in probed
        ]
        return max(found)[1:] if found else None

    async def insert(number: int) -> tuple[str, int, int] | None:
        """Add an ad and wait until it is generated; return it, whom it is shown to and among how many candidates."""
        creative = await surest(number)
        if creative is None:
            delays.insert_ms.append(1000.0 * GIVE_UP_S)
            delays.never_generated += 1
            return None
        sibling, visit = creative
        probed.add(sibling)
        ad = _further_campaign(ads[sibling], f"{run_id}-ad-{number}")
        await sids.BatchCreateAdSids(
            sid_pb2.BatchCreateAdSidsRequest(request_id=f"{ad.ad_id}-create", ads=[ad]), timeout=GIVE_UP_S
        )
        committed = time.monotonic()
        for turn in itertools.count():
            count = CANDIDATES if turn < NARROW_LOOKS else WIDE_CANDIDATES
            answer = await look(visit, f"{number}-insert-{turn}", count)
            if answer is not None and ad.ad_id in answer.ad_ids:
                delays.insert_ms.append(1000.0 * (answer.received - committed))
                break
            if time.monotonic() - committed > GIVE_UP_S:
                delays.insert_ms.append(1000.0 * GIVE_UP_S)
                delays.never_generated += 1
                break
            await asyncio.sleep(POLL_S)
        return ad.ad_id, visit, count

    async def watch(number: int, ad_id: str, visit: int, count: int) -> None:
        """Look for a paused ad until it ought to be gone for good."""
        paused = last_seen = delays.paused_at[ad_id]
        for turn in itertools.count():
            answer = await look(visit, f"{number}-pause-{turn}", count)
            if answer is not None and ad_id in answer.ad_ids:
                last_seen = answer.received
            if time.monotonic() - paused > WATCH_PAUSED_S:
                break
            await asyncio.sleep(PAUSED_POLL_S)
        delays.pause_ms.append(1000.0 * (last_seen - paused))

    async with asyncio.TaskGroup() as watches:
        for number in range(probes):
            inserted = await insert(number)
            if inserted is not None:
                ad_id, visit, count = inserted
                await sids.UpdateAd(
                    sid_pb2.UpdateAdRequest(ad_id=ad_id, state=sid_pb2.AD_STATE_PAUSED), timeout=GIVE_UP_S
                )
                delays.paused_at[ad_id] = time.monotonic()
                watches.create_task(watch(number, ad_id, visit, count))
            on_probe()
    return delays


def dead_ads(answers: Sequence[Answer], paused_at: Mapping[str, float]) -> int:
    """Count ads returned to requests that were sent more than a second after the ad's pause was committed."""
    return sum(
        1
        for answer in answers
        for ad_id in answer.ad_ids
        if ad_id in paused_at and answer.sent > paused_at[ad_id] + PAUSE_LIMIT_S
    )


def _further_campaign(ad: sid_pb2.Ad, ad_id: str) -> sid_pb2.Ad:
    """Return the same creative as another ad of the same account."""
    other = sid_pb2.Ad()
    other.CopyFrom(ad)
    other.ad_id = ad_id
    other.advertiser_id = ad.advertiser_id or ad.brand or ad.ad_id
    other.state = sid_pb2.AD_STATE_ACTIVE
    return other
