"""What may be answered from a result cache, told from a complete history of what a computation would have found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32


@dataclass(frozen=True)
class World:
    """What a computation depends on at one moment: the policy, and the live ads' SIDs by ad."""

    time_s: float
    policy: str
    live: dict[str, tuple[int, ...]]

    def answer(self, user: str, count: int) -> list[str]:
        """Return what is computed now: the live ads in an order of the policy's and the user's own."""
        return sorted(self.live, key=lambda ad_id: crc32(f"{self.policy} {user} {ad_id}".encode()))[:count]


@dataclass
class History:
    """Every moment at which something changed or time had passed, oldest first; the latest is the present."""

    worlds: list[World] = field(default_factory=list)

    def allowed(self, user: str, count: int, ttl_s: float) -> list[list[str]]:
        """Return every answer that may be given in the latest world: the fresh one, and those that are still good.

        A good answer is younger than `ttl_s`, of the latest policy with no other in between, and none of its ads is
        dead; no ad has come to life since that shares a first code with it, and none at all where it is short.
        """
        now = self.worlds[-1]
        answers = [now.answer(user, count)]
        for then, later in _backwards(self.worlds):
            if then.policy != now.policy or (later and now.time_s - later[0].time_s >= ttl_s):
                break
            answer = then.answer(user, count)
            if set(answer) <= set(now.live) and not _came(then, later, answer, count):
                answers.append(answer)
        return answers


def _backwards(worlds: Sequence[World]) -> list[tuple[World, Sequence[World]]]:
    return [(worlds[place], worlds[place + 1 :]) for place in range(len(worlds) - 1, -1, -1)]


def _came(then: World, later: Sequence[World], answer: list[str], count: int) -> bool:
    first_codes = {then.live[ad_id][0] for ad_id in answer}
    before = then
    for world in later:
        for ad_id in set(world.live) - set(before.live):
            if len(answer) < count or world.live[ad_id][0] in first_codes:
                return True
        before = world
    return False
