"""A running generator with its neighbours, per test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import torch

from tests.ad_generator.suite import Neighbours, Suite, run_neighbours, run_ready_generator


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
async def neighbours(artifact_store_url: str) -> AsyncIterator[Neighbours]:
    """The services around a generator, with no ad and no policy yet."""
    async with run_neighbours(artifact_store_url) as running:
        yield running


@pytest.fixture
async def suite(neighbours: Neighbours) -> AsyncIterator[Suite]:
    """A generator with every SID of the codebook as a live ad and a policy `first`."""
    async with run_ready_generator(neighbours) as running:
        yield running
