"""The yardstick: fixed requests, and revenue that is the market's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gr4ad.generation.v1 import generation_pb2
from gr4ad_core.learning.data_folder import Interactions, read_interactions
from gr4ad_tools.simulate import Market
from gr4ad_tools.simulate.bounds import foil_lists
from gr4ad_tools.yardstick import FixedRequests, ask_all, revenue_figures, shown_lists

from tests.gr4ad_tools.generation_double import Generator, serving
from tests.gr4ad_tools.simulated_market import market


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Market, Interactions]:
    made, folder = market("tiny"), Path(tmp_path_factory.mktemp("market"))
    made.write_folder(folder)
    return made, read_interactions(folder)


def test_requests_are_the_same_for_every_policy_and_know_all_of_the_past(log: tuple[Market, Interactions]) -> None:
    made, interactions = log
    fixed, again = (FixedRequests.draw(made, interactions, seed=3, count=40) for _ in range(2))
    assert fixed.users_R.tolist() == again.users_R.tolist()
    assert fixed.users_R.tolist() != FixedRequests.draw(made, interactions, seed=4, count=40).users_R.tolist()
    for user, context in zip(fixed.users_R, fixed.contexts, strict=True):
        assert context.user_id == made.user_ids[user]
        assert context.request_time.seconds == int(made.end)
        events = sum(
            int(np.diff(interactions.offsets[number : number + 2])[0])
            for number, user_id in enumerate(interactions.user_ids)
            if user_id == context.user_id
        )
        assert len(context.history) == min(events, 256)
        assert context.cold_start == (events == 0)


async def test_a_policy_that_shows_the_best_lists_earns_what_the_oracle_earns(log: tuple[Market, Interactions]) -> None:
    made, interactions = log
    fixed = FixedRequests.draw(made, interactions, seed=3, count=40)
    length = made.config.list_length
    best = foil_lists("oracle", made, fixed.users_R, fixed.time, length, np.random.default_rng(0))
    of_user = {made.user_ids[user]: ads for user, ads in zip(fixed.users_R, best, strict=True)}

    def answer(request: generation_pb2.GenerateAdsRequest) -> list[tuple[str, float]]:
        ads = of_user[request.user_context.user_id][: request.candidate_count]
        return [(made.item_ids[ad], -float(place)) for place, ad in enumerate(ads)]

    async with serving(Generator(answer)) as channel:
        lists = shown_lists(made, await ask_all(channel, made, fixed, "y"))
    assert lists.tolist() == best.tolist()
    figures = revenue_figures(made, fixed, {"vsl": lists, "lazy": np.full_like(lists, -1)}, seed=0)
    assert figures["vsl_rpm"].value == figures["oracle_rpm"].value > figures["popularity_bid_rpm"].value
    assert figures["popularity_bid_rpm"].value > figures["random_rpm"].value > figures["lazy_rpm"].value == 0.0
    assert figures["vsl_oracle_share"].value == 1.0
    assert figures["vsl_rpm"].n == 40


async def test_an_ad_that_the_market_does_not_know_earns_nothing(log: tuple[Market, Interactions]) -> None:
    made, interactions = log
    fixed = FixedRequests.draw(made, interactions, seed=3, count=5)
    async with serving(Generator(lambda _: [("another market's", -1.0), (made.item_ids[2], -2.0)])) as channel:
        lists = shown_lists(made, await ask_all(channel, made, fixed, "y"))
    assert lists[:, :3].tolist() == [[-1, 2, -1]] * 5


async def test_a_request_that_fails_is_counted_and_earns_nothing(log: tuple[Market, Interactions]) -> None:
    made, interactions = log
    fixed = FixedRequests.draw(made, interactions, seed=3, count=5)
    generator = Generator(lambda _: [(made.item_ids[2], -1.0)], fail=lambda request_id: request_id == "y-1")
    async with serving(generator) as channel:
        answers = await ask_all(channel, made, fixed, "y")
    assert answers.failures == {"RESOURCE_EXHAUSTED": 1}
    assert shown_lists(made, answers)[:, 0].tolist() == [2, -1, 2, 2, 2]
