"""From user histories to scored ads: one model call for a batch of requests.

Shapes: B requests, N candidates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from gr4ad.type.v1 import type_pb2
from gr4ad_core.decoding.beam_schedule import BeamPlan, BeamScale, Constraint, scaled_widths, scheduled_widths
from gr4ad_core.model.history import UserHistory
from gr4ad_runtime.errors import UnavailableError
from numpy.typing import NDArray

from ad_generator.ad_table import AdTable
from ad_generator.batch_plan import BatchPlan
from ad_generator.catalog_mirror import CatalogMirror
from ad_generator.policy_messages import Stages
from ad_generator.policy_process import PolicyProcess, PolicyProcessGoneError
from ad_generator.ranking import ranking_order


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy that is ready to compute."""

    ref: type_pb2.PolicyRef
    """Its identity."""
    process: PolicyProcess
    """Where it computes."""


@dataclass(frozen=True)
class ServingState:
    """What answers requests: a policy and the catalogue of its codebook, replaced together."""

    policy: LoadedPolicy
    mirror: CatalogMirror


@dataclass(frozen=True)
class Query:
    """One request for the engine."""

    ad_ids: Sequence[str]
    """Ads of the history, oldest first."""
    behaviors: NDArray[np.int64]
    """What the user did, `[n]`."""
    event_times: NDArray[np.float64]
    """Unix seconds, NaN where unknown, `[n]`."""
    request_time: float
    """Unix seconds."""
    features: Mapping[str, str]
    """Categorical features."""
    candidate_count: int
    """Ads wanted at most."""


@dataclass(frozen=True)
class Generated:
    """The candidates of one request, the best first."""

    policy: LoadedPolicy
    table: AdTable
    """Where the candidates' slots lead."""
    slots: list[int]
    """Slots of the ads."""
    sids: list[list[int]]
    """Codes of the ads."""
    log_probs: list[float]
    """Natural logarithms of the policy's probabilities."""
    ecpm_micros: list[int]
    """Expected eCPM."""
    plan: BeamPlan
    """Widths of the search."""
    stages: Stages
    """Of the model call that the request was part of."""
    skipped_events: int
    """Events whose ad the catalogue does not know."""
    scale: float = 1.0
    """Factor that the load put on the policy's own widths."""
    load: float = 0.0
    """Share of the capacity that requests asked for."""


class Engine:
    """Computes batches; called by one thread at a time."""

    def __init__(self, beam_widths: tuple[int, ...], value_weight: float) -> None:
        """Make an engine without a policy.

        Args:
            beam_widths: Beams to keep at each SID level.
            value_weight: Weight of the expected eCPM in the final ranking.
        """
        self.beam_widths = beam_widths
        self.value_weight = value_weight
        self.state: ServingState | None = None
        """What the next batch uses; replaced by assignment, while a batch under way keeps the one it began with."""

    def compute(self, queries: Sequence[Query], plan: BatchPlan) -> list[Generated]:
        """Answer a batch with the current state, at the widths of its plan.

        Raises:
            UnavailableError: The policy's process has ended.
        """
        state = self.state
        assert state is not None, "requests are refused before the first policy"
        try:
            answers = self.generate(state.policy, state.mirror.table, queries, plan.scale)
        except PolicyProcessGoneError as error:
            remedy = f"{error}: retry, here once the generator has started anew, or at another replica"
            raise UnavailableError("policy", state.policy.ref.policy_id, remedy) from error
        return [replace(answer, load=plan.load) for answer in answers]

    def catch_up(self) -> None:
        """Send the serving policy's process what it lacks of the live ads, so that the next batch need not."""
        if self.state is not None:
            self.state.policy.process.catch_up(self.state.mirror.table)

    def generate(
        self, policy: LoadedPolicy, table: AdTable, queries: Sequence[Query], scale: BeamScale
    ) -> list[Generated]:
        """Answer a batch with a given policy, the live ads of a table and the schedule's widths at a scale.

        Queries that call for another schedule are computed apart. Of the others, the one that wants most candidates
        decides the last width: what is found before its end is the same at any. So no query changes its neighbours'
        answers.
        """
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, query in enumerate(queries):
            groups[scheduled_widths(self.beam_widths, query.candidate_count)].append(number)
        answers: dict[int, Generated] = {}
        for widths, numbers in groups.items():
            group = [queries[number] for number in numbers]
            answers.update(zip(numbers, self._generate(policy, table, widths, group, scale), strict=True))
        return [answers[number] for number in range(len(queries))]

    def _generate(
        self,
        policy: LoadedPolicy,
        table: AdTable,
        scheduled: tuple[int, ...],
        queries: Sequence[Query],
        scale: BeamScale,
    ) -> list[Generated]:
        histories = [user_history(query, table) for query in queries]
        skipped = [len(q.ad_ids) - len(h.behaviors) for q, h in zip(queries, histories, strict=True)]
        wanted = max(query.candidate_count for query in queries)
        widths = scaled_widths(scheduled, scale.factor, wanted)
        found = policy.process.decode(table, widths, histories, wanted)
        plan = found.plan
        if plan.constrained_by is Constraint.SCHEDULE:
            plan = replace(plan, constrained_by=scale.constrained_by)
        # The table may know of a pause that came after the call.
        usable_BN = (found.slots_BN >= 0) & table.live(found.slots_BN)
        wanted_B = np.array([query.candidate_count for query in queries])
        usable_BN &= usable_BN.cumsum(axis=1) <= wanted_B[:, None]
        counts_B = usable_BN.sum(axis=1)
        order_BN = ranking_order(np.where(usable_BN, found.log_probs_BN, -np.inf), found.ecpm_BN, self.value_weight)

        # Plain numbers from here on: the event loop reads them faster than arrays.
        slots_BN = np.take_along_axis(found.slots_BN, order_BN, axis=1)
        slots, sids = slots_BN.tolist(), table.sids(slots_BN).tolist()
        log_probs = np.take_along_axis(found.log_probs_BN, order_BN, axis=1).tolist()
        ecpm_micros = np.rint(np.take_along_axis(found.ecpm_BN, order_BN, axis=1)).astype(np.int64).tolist()
        return [
            Generated(
                policy=policy,
                table=table,
                slots=slots[row][:count],
                sids=sids[row][:count],
                log_probs=log_probs[row][:count],
                ecpm_micros=ecpm_micros[row][:count],
                plan=plan,
                stages=found.stages,
                skipped_events=skipped[row],
                scale=scale.factor,
            )
            for row, count in enumerate(counts_B.tolist())
        ]


def user_history(query: Query, table: AdTable) -> UserHistory:
    """Look a request's events up; events of ads that the table does not know are left out, paused ads are kept."""
    slots = table.slots(query.ad_ids)
    known = slots >= 0
    return UserHistory(
        sids=table.sids(slots[known]),
        behaviors=query.behaviors[known],
        event_times=query.event_times[known],
        request_time=query.request_time,
        features=query.features,
    )
