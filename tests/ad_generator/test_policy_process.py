"""What a policy's process is told of the live ads: all at first, then what changed, and all again when that is less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ad_generator.ad_table import FEWEST_FLIPS, AdTable
from ad_generator.policy_messages import Decoded, LiveAds, LiveChanges, WorkerSettings
from ad_generator.policy_process import PolicyProcess, PolicyProcessGoneError
from gr4ad.sid.v1 import sid_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_core.model.history import UserHistory

from tests.ad_generator.neighbours import ACTIVE, PAUSED
from tests.ad_generator.policies import CODEBOOK, LEVEL_SIZES, publish
from tests.ad_generator.suite import ALL_SIDS

WIDTHS = (4, 20, len(ALL_SIDS))
NOBODY = UserHistory(np.zeros((0, 3), np.int64), np.zeros(0, np.int64), np.zeros(0), 0.0)


@contextmanager
def policy_process(store_url: str, name: str, compute_type: str = "float32") -> Iterator[PolicyProcess]:
    """Run a random policy in a process."""
    policy = publish(store_url, name, seed=1)
    process = PolicyProcess(Path(policy.uri), WorkerSettings(CODEBOOK, policy.policy.sha256, "cpu", compute_type, 1))
    try:
        yield process
    finally:
        process.close()


def put(table: AdTable, sids: Any, state: Any = ACTIVE) -> None:
    """Let ads come or go."""
    entry = sid_pb2.CatalogEntry
    table.apply(entry(ad_id=str(sid), sid=type_pb2.SemanticId(codes=sid), state=state) for sid in sids)


def decode(process: PolicyProcess, table: AdTable) -> Decoded:
    """Ask for every live ad."""
    return process.decode(table, WIDTHS, [NOBODY], len(ALL_SIDS))


def expect(process: PolicyProcess, table: AdTable) -> None:
    """What the process finds is what the table calls live."""
    found = decode(process, table)
    assert set(found.slots_BN[0].tolist()) == table.live_slots
    assert found.plan.widths[-1] == len(table.live_slots)


def messages(process: PolicyProcess, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note what is sent to a process about live ads."""
    sent: list[Any] = []
    send = process._send
    about_ads = (LiveAds, LiveChanges)
    monkeypatch.setattr(process, "_send", lambda m: (sent.append(m) if isinstance(m, about_ads) else None, send(m)))
    return sent


def test_a_process_computes_in_the_type_it_is_told(artifact_store_url: str) -> None:
    table = AdTable(LEVEL_SIZES)
    put(table, ALL_SIDS)
    found = []
    for compute_type in ("float32", "bfloat16", "int8"):
        with policy_process(artifact_store_url, compute_type, compute_type) as process:
            answer = decode(process, table)
            order = np.argsort(answer.slots_BN[0])
            assert set(answer.slots_BN[0].tolist()) == table.live_slots
            found.append((answer.log_probs_BN[0, order], answer.ecpm_BN[0, order]))
    (log_probs, ecpm), *others = found
    for rounded_log_probs, rounded_ecpm in others:
        np.testing.assert_allclose(rounded_log_probs, log_probs, atol=0.02)
        assert (rounded_log_probs != log_probs).all()
        np.testing.assert_allclose(rounded_ecpm, ecpm, rtol=0.1)
        assert np.sqrt(np.square(rounded_ecpm / ecpm - 1).mean()) < 0.05
    assert (others[0][0] != others[1][0]).any()


def test_every_process_gets_all_ads_first_and_then_what_changed(
    artifact_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = AdTable(LEVEL_SIZES)
    put(table, ALL_SIDS[:60])
    with policy_process(artifact_store_url, "a") as old, policy_process(artifact_store_url, "b") as new:
        to_old, to_new = messages(old, monkeypatch), messages(new, monkeypatch)
        expect(old, table)
        put(table, ALL_SIDS[60:70])
        put(table, ALL_SIDS[:5], PAUSED)
        expect(old, table)
        put(table, ALL_SIDS[3:4])
        expect(old, table)
        expect(old, table)
        expect(new, table)  # swapped in beside it
        put(table, ALL_SIDS[70:71])
        expect(new, table)
        expect(old, table)
    assert [type(message) for message in to_old] == [LiveAds, LiveChanges, LiveChanges, LiveChanges]
    assert to_old[1].slots_C.tolist() == [*range(5), *range(60, 70)]
    assert to_old[1].live_C.tolist() == [False] * 5 + [True] * 10
    assert [type(message) for message in to_new] == [LiveAds, LiveChanges]
    assert len(to_new[0].slots_A) == 66


def test_a_process_that_is_too_far_behind_gets_all_ads_again(
    artifact_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = AdTable(LEVEL_SIZES)
    put(table, ALL_SIDS[:60])
    with policy_process(artifact_store_url, "a") as process:
        sent = messages(process, monkeypatch)
        expect(process, table)
        for _ in range(FEWEST_FLIPS // 20 + 1):
            put(table, ALL_SIDS[:10], PAUSED)
            put(table, ALL_SIDS[:10])
        put(table, ALL_SIDS[:7], PAUSED)
        expect(process, table)
        another = AdTable(LEVEL_SIZES)  # the catalogue's store was set back
        put(another, ALL_SIDS[50:80])
        expect(process, another)
    assert [type(message) for message in sent] == [LiveAds, LiveAds, LiveAds]


def test_a_process_catches_up_between_calls(artifact_store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = AdTable(LEVEL_SIZES)
    put(table, ALL_SIDS[:60])
    with policy_process(artifact_store_url, "a") as process:
        sent = messages(process, monkeypatch)
        assert process.is_behind(table)
        process.catch_up(table)
        assert not process.is_behind(table)
        put(table, ALL_SIDS[:1], PAUSED)
        assert process.is_behind(table)
        process.catch_up(table)
        assert len(sent) == 2
        expect(process, table)
        assert len(sent) == 2


def test_no_live_ad_is_an_empty_answer(artifact_store_url: str) -> None:
    table = AdTable(LEVEL_SIZES)
    put(table, ALL_SIDS[:2])
    put(table, ALL_SIDS[:2], PAUSED)
    with policy_process(artifact_store_url, "a") as process:
        found = decode(process, table)
        assert found.slots_BN.shape == found.log_probs_BN.shape == found.ecpm_BN.shape == (1, 0)
        assert found.plan.widths == (0, 0, 0)
        put(table, ALL_SIDS[:1])
        expect(process, table)


def test_a_process_that_cannot_follow_ends(artifact_store_url: str) -> None:
    """It would serve from an index that nobody knows: better none."""
    with policy_process(artifact_store_url, "a") as process:
        strangers = SimpleNamespace(
            flips=1, view=lambda: SimpleNamespace(live=np.ones(1, np.bool_), sids=np.array([[9, 9, 9]]))
        )
        with pytest.raises(PolicyProcessGoneError, match="ended with exit code 1"):
            decode(process, strangers)  # type: ignore[arg-type]
