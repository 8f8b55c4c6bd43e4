"""Exercises a policy before it answers its first request, and catches one that cannot answer."""

from __future__ import annotations

from itertools import product
from typing import Final

import numpy as np
from gr4ad_core.decoding.beam_schedule import BeamScale

from ad_generator.ad_table import AdTable
from ad_generator.batch_plan import Limits
from ad_generator.engine import Engine, LoadedPolicy, Query
from ad_generator.policy_process import PolicyRefusedError

HISTORY_LENGTHS: Final = (0, 1, 50)
CANDIDATES: Final = 16


def warm_up(engine: Engine, policy: LoadedPolicy, table: AdTable, limits: Limits) -> None:
    """Answer made-up requests, in the smallest and largest batches and at the narrowest and widest beams that may come,
    so that the first real ones pay for no allocation.

    Args:
        engine: Computes them; what it serves stays as it is.
        policy: The policy to try.
        table: Of the catalogue it would serve.
        limits: Of batches and widths.

    Raises:
        PolicyRefusedError: The policy's answers are not numbers.
    """
    factors = sorted({limits.scale_min, 1.0, limits.scale_max})
    for batch_size, factor in product((1, limits.max_size), factors):
        lengths = (HISTORY_LENGTHS[number % len(HISTORY_LENGTHS)] for number in range(batch_size))
        queries = [_query(table, length) for length in lengths]
        for answer in engine.generate(policy, table, queries, BeamScale(factor)):
            if not np.isfinite(answer.log_probs).all() or (table.live_slots and not answer.slots):
                raise PolicyRefusedError(
                    "log_prob: not finite: the policy diverged in training, activate the policy before it"
                )


def _query(table: AdTable, length: int) -> Query:
    ad_ids = table.ad_ids[:length]
    return Query(
        ad_ids=ad_ids,
        behaviors=np.ones(len(ad_ids), np.int64),
        event_times=np.full(len(ad_ids), np.nan),
        request_time=0.0,
        features={},
        candidate_count=CANDIDATES,
    )
