"""Who asks for ads while a policy learns online, and what they do with what they are shown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.data_folder import Interactions
from gr4ad_core.learning.item_lines import DEFAULT_BID_MICROS

from gr4ad_tools.leave_one_out import HISTORY_LIMIT
from gr4ad_tools.simulate import Market
from gr4ad_tools.simulate.scenarios import DAY_S
from gr4ad_tools.simulate.traffic import START, day_of
from gr4ad_tools.yardstick import logged_context

BID_SIGMA = 0.8


@dataclass(frozen=True)
class Visit:
    """A user comes.

    Attributes:
        user_id: Who.
        context: What is known of him.
        key: The audience's own number of the user or the visit.
        time: When, by the audience's clock, in unix seconds.
    """

    user_id: str
    context: type_pb2.UserContext
    key: int
    time: float


@dataclass(frozen=True)
class Reaction:
    """What a user did with one shown ad.

    Attributes:
        clicked: Whether he clicked.
        converted: Whether he converted; it is told at once, however long it would take to be known.
        click_micros: What the click costs the advertiser.
        conversion_micros: What the conversion costs him.
    """

    clicked: bool = False
    converted: bool = False
    click_micros: int = 0
    conversion_micros: int = 0


class Audience(Protocol):
    """Users in order of time. What they do may change what comes: visits are drawn as they are asked for."""

    @property
    def page_size(self) -> int:
        """Ads shown to each."""

    def knows(self, ad_id: str) -> bool:
        """Tell whether users can be shown an ad."""

    def visits(self) -> Iterator[Visit]:
        """Yield visits without end."""

    def respond(self, visits: Sequence[Visit], pages: Sequence[Sequence[str]]) -> list[list[Reaction]]:
        """Show each visitor a page of known ads, the visits in their order, and return the reactions to each ad."""


class MarketAudience:
    """The users of a simulated market after the end of its log; their clicks become part of their histories."""

    def __init__(self, market: Market, interactions: Interactions, seed: int) -> None:
        """Continue a market.

        Args:
            market: Moves on with every page shown.
            interactions: Its log, as everybody knows it.
            seed: Of the arrivals and of what users do.
        """
        self.page_size = market.config.list_length
        self._market = market
        self._interactions = interactions
        self._logged = {user_id: number for number, user_id in enumerate(interactions.user_ids)}
        self._since: dict[int, list[type_pb2.HistoryEvent]] = {}
        self._arrivals, self._responses = (np.random.default_rng([seed, part]) for part in range(2))
        self._pays_click = {item["item_id"]: item["conversion_type"] == "click" for item in market.items}
        self._now = market.end

    def clock(self) -> tuple[int, float]:
        """Return the market's day and the share of it that has passed, as of the latest page shown."""
        day = int(day_of(self._now))
        return day, (self._now - START) / DAY_S - day

    def knows(self, ad_id: str) -> bool:
        """Tell whether an ad is one of the market's."""
        return ad_id in self._pays_click

    def visits(self) -> Iterator[Visit]:
        """Yield the arrivals of one day after the other."""
        for day in itertools.count(self._market.config.days):
            arrivals = self._market.arrivals(day, self._arrivals)
            for user, time in zip(arrivals.users_R.tolist(), arrivals.times_R.tolist(), strict=True):
                yield Visit(self._market.user_ids[user], self._context(user, time), user, time)

    def respond(self, visits: Sequence[Visit], pages: Sequence[Sequence[str]]) -> list[list[Reaction]]:
        """Let the market draw what the users do."""
        ads_RL = np.full((len(pages), self.page_size), -1, dtype=np.int64)
        for row, page in zip(ads_RL, pages, strict=True):
            row[: len(page)] = [self._market.ad_index[ad_id] for ad_id in page]
        times = np.array([visit.time for visit in visits])
        self._now = float(times[-1])
        drawn = self._market.respond_many(np.array([visit.key for visit in visits]), ads_RL, times, self._responses)
        reactions = []
        for n, (visit, page) in enumerate(zip(visits, pages, strict=True)):
            of_page = []
            for slot, ad_id in enumerate(page):
                clicked, converted = bool(drawn.clicked_RL[n, slot]), bool(drawn.converted_RL[n, slot])
                charge, per_click = int(drawn.charge_micros_RL[n, slot]), self._pays_click[ad_id]
                of_page.append(Reaction(clicked, converted, charge if per_click else 0, 0 if per_click else charge))
                if clicked or converted:
                    self._remember(visit, ad_id, converted)
            reactions.append(of_page)
        return reactions

    def _context(self, user: int, time: float) -> type_pb2.UserContext:
        context = logged_context(self._interactions, self._logged, self._market.user_ids[user], time)
        since = self._since.get(user, [])
        if since:
            events = [*context.history, *since][-HISTORY_LIMIT:]
            del context.history[:]
            context.history.extend(events)
            context.cold_start = False
        return context

    def _remember(self, visit: Visit, ad_id: str, converted: bool) -> None:
        behavior = type_pb2.BEHAVIOR_CONVERSION if converted else type_pb2.BEHAVIOR_CLICK
        event = type_pb2.HistoryEvent(ad_id=ad_id, behavior=behavior)
        event.event_time.FromSeconds(int(visit.time))
        self._since.setdefault(visit.key, []).append(event)


class ReplayAudience:
    """The users of a real data folder, again and again: what they are known to choose next is clicked and converts."""

    def __init__(
        self,
        contexts: Sequence[type_pb2.UserContext],
        chosen: Sequence[str],
        bid_micros: Mapping[str, int],
        page_size: int,
    ) -> None:
        """Replay visits.

        Args:
            contexts: What is known of each visitor before the choice.
            chosen: The ad that each goes on to choose.
            bid_micros: What each ad's advertiser pays for a conversion, by ad: all ads there are.
            page_size: Ads shown to each.
        """
        self.page_size = page_size
        self._contexts = contexts
        self._chosen = chosen
        self._bid_micros = bid_micros

    def knows(self, ad_id: str) -> bool:
        """Tell whether an ad is one of the folder's."""
        return ad_id in self._bid_micros

    def visits(self) -> Iterator[Visit]:
        """Yield the visits, round after round."""
        for number in itertools.cycle(range(len(self._contexts))):
            context = self._contexts[number]
            yield Visit(context.user_id, context, number, float(context.request_time.seconds))

    def respond(self, visits: Sequence[Visit], pages: Sequence[Sequence[str]]) -> list[list[Reaction]]:
        """Let each visitor take the chosen ad where it is on the page, and nothing else."""
        return [
            [
                Reaction(True, True, 0, self._bid_micros[ad_id]) if ad_id == self._chosen[visit.key] else Reaction()
                for ad_id in page
            ]
            for visit, page in zip(visits, pages, strict=True)
        ]


def seeded_bids(bid_micros: Mapping[str, int], seed: int) -> tuple[dict[str, int], bool]:
    """Return bids to learn with, and whether they were made up.

    Where no ad has a bid of its own, each gets one from a log-normal distribution around the default.

    Args:
        bid_micros: The folder's bids, by ad.
        seed: Of the draw.
    """
    if any(bid != DEFAULT_BID_MICROS for bid in bid_micros.values()):
        return dict(bid_micros), False
    drawn = np.random.default_rng([seed, len(bid_micros)]).lognormal(
        np.log(DEFAULT_BID_MICROS), BID_SIGMA, len(bid_micros)
    )
    return {ad_id: int(bid) for ad_id, bid in zip(sorted(bid_micros), drawn, strict=True)}, True
