"""What a policy is tried at before it serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from ad_generator.ad_table import AdTable
from ad_generator.batch_plan import Limits
from ad_generator.engine import Engine, LoadedPolicy
from ad_generator.policy_messages import Decoded, Stages
from ad_generator.policy_process import PolicyRefusedError
from ad_generator.warm_up import warm_up
from gr4ad.sid.v1 import sid_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_core.decoding.beam_schedule import BeamPlan, Constraint


class Process:
    """Finds nothing, and notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    def decode(self, table: AdTable, widths: tuple[int, ...], histories: Sequence[Any], wanted: int) -> Decoded:
        self.asked.append((len(histories), widths))
        found = np.zeros((len(histories), 0))
        plan = BeamPlan(widths, Constraint.SCHEDULE)
        return Decoded(found.astype(np.int64), found, found, plan, Stages(0, 0, (0,) * 3, 0))


def tried(limits: Limits) -> list[tuple[int, tuple[int, ...]]]:
    process = Process()
    policy: Any = LoadedPolicy(type_pb2.PolicyRef(), process)  # type: ignore[arg-type]
    warm_up(Engine((32, 64, 128), 1.0), policy, AdTable((4, 4, 4)), limits)
    return process.asked


def test_the_smallest_and_largest_batches_are_tried_at_the_narrowest_and_widest_beams() -> None:
    assert tried(Limits(9, 0.0, 0.25, 1.6)) == [
        (1, (8, 16, 32)),
        (1, (32, 64, 128)),
        (1, (52, 103, 205)),
        (9, (8, 16, 32)),
        (9, (32, 64, 128)),
        (9, (52, 103, 205)),
    ]


def test_fixed_widths_are_tried_once_a_batch() -> None:
    assert tried(Limits(9, 0.0)) == [(1, (32, 64, 128)), (9, (32, 64, 128))]


def test_a_policy_that_finds_nothing_among_live_ads_is_refused() -> None:
    table = AdTable((4, 4, 4))
    sid = type_pb2.SemanticId(codes=[1, 2, 3])
    table.apply([sid_pb2.CatalogEntry(ad_id="a", sid=sid, state=sid_pb2.AD_STATE_ACTIVE)])
    policy: Any = LoadedPolicy(type_pb2.PolicyRef(), Process())  # type: ignore[arg-type]
    with pytest.raises(PolicyRefusedError, match="not finite"):
        warm_up(Engine((32, 64, 128), 1.0), policy, table, Limits(9, 0.0))
