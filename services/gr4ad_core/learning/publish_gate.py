"""Whether a policy that learned online may be published: measured on lists that it did not learn from.

Drift, the calibration of expected eCPM and of the eCPM token, and recall each have a limit. What cannot be told yet for
want of responses refuses nothing, but for too few lists, of which nothing at all can be told.
Shapes: B lists, N candidates of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from gr4ad_core.decoding.beam_search import expected_ecpm
from gr4ad_core.learning.held_out import held_out_metrics
from gr4ad_core.learning.online import NOT_SHOWN, OnlineLearner, RewardedCandidates, collate_lists
from gr4ad_core.learning.sampling import TrainingSet
from gr4ad_core.learning.value_label import CLICK
from gr4ad_core.model.lazy_ar import LazyAr

BATCH = 64
RECALL = "held_out_recall@10"


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """Limits of a publication."""

    least_lists: int = 10
    """Held-out lists from which on drift says something."""
    drift: float = 2.0
    """Mean |log p_θ/p_start| over candidates, in nats: about a factor of seven in likelihood."""
    calibration: float = 2.0
    """Expected eCPM of what was shown over what it earned: not above this, nor below its inverse. The same holds for
    what the eCPM token expects of responses, as a ratio to what the starting policy's does: that one learned from
    responses and the charges expected behind them, and need not be exact to order ads well."""
    recall_share: float = 0.7
    """Recall as a share of the starting policy's, at least. Some is given up on purpose, for value."""
    least_responders: int = 20
    """Held-out users with a response from which on calibration and recall say something. Users are counted, not
    responses: what one user responds to time and again is one observation."""


@dataclass(frozen=True)
class GateReport:
    """What was measured, and what speaks against a publication."""

    metrics: dict[str, float]
    """`held_out_lists`, `drift`, and with enough responders `calibration`, `ecpm_calibration` and `held_out_recall@10`,
    the last two also of the starting policy, with the prefix `start_`."""
    refusals: tuple[str, ...]
    """One sentence per limit that is passed; empty if the policy may be published."""


def check(
    learner: OnlineLearner,
    start: LazyAr,
    held_out: Sequence[RewardedCandidates],
    ad_sids_AT: np.ndarray,
    limits: GateLimits,
) -> GateReport:
    """Measure a policy against the one it started from.

    Args:
        learner: Holds the policy and the reward model.
        start: The policy that it started from.
        held_out: Lists that neither of them has learned from.
        ad_sids_AT: SIDs of all ads that may be generated.
        limits: What is allowed.
    """
    lists = [rewarded for rewarded in held_out if rewarded.has_ref]
    metrics = {"held_out_lists": float(len(lists)), "drift": _drift(learner.policy, start, lists)}
    responders = len({rewarded.user_key for rewarded in lists if rewarded.responded_N.any()})
    metrics["held_out_responders"] = float(responders)
    if responders >= limits.least_responders and learner.rewards.ready:
        metrics["calibration"] = _calibration(learner, lists)
        samples = _responses(lists, ad_sids_AT)
        vsl = replace(learner.config.vsl, validation_users=len(samples))
        for name, model in {"": learner.policy, "start_": start}.items():
            metrics[f"{name}ecpm_calibration"] = _ecpm_calibration(model, lists)
            metrics[f"{name}{RECALL}"] = held_out_metrics(model, samples, vsl)[RECALL]
    return GateReport(metrics, tuple(_refusals(metrics, limits)))


def _refusals(metrics: dict[str, float], limits: GateLimits) -> list[str]:
    """Every comparison is such that a number that is none refuses."""
    refusals = []
    if metrics["held_out_lists"] < limits.least_lists:
        refusals.append(
            f"held_out_lists: {metrics['held_out_lists']:g}, below {limits.least_lists}: nothing can be told"
        )
    if not metrics["drift"] <= limits.drift:
        refusals.append(f"drift: {metrics['drift']:.2f} nats from the starting policy, above {limits.drift:g}")
    if "calibration" not in metrics:
        return refusals
    start = metrics["start_ecpm_calibration"]
    ecpm = metrics["ecpm_calibration"] / start if start else math.nan
    for what, ratio, of in (
        ("calibration", metrics["calibration"], "what was earned"),
        ("ecpm_calibration", ecpm, "what the starting policy expects of responses"),
    ):
        if not 1.0 / limits.calibration <= ratio <= limits.calibration:
            refusals.append(f"{what}: expects {ratio:.2f} × {of}, beyond {limits.calibration:g} ×")
    if not metrics[RECALL] >= limits.recall_share * metrics[f"start_{RECALL}"]:
        refusals.append(
            f"recall@10: {metrics[RECALL]:.3f}, below {limits.recall_share:g} × {metrics[f'start_{RECALL}']:.3f} "
            "of the starting policy"
        )
    return refusals


@torch.no_grad()
def _drift(policy: LazyAr, start: LazyAr, lists: Sequence[RewardedCandidates]) -> float:
    total, count = 0.0, 0
    for first in range(0, len(lists), BATCH):
        part = lists[first : first + BATCH]
        batch = collate_lists(part, [rewarded.response_value_N for rewarded in part], policy)
        now_BN, then_BN = (
            model.sid_log_probs(model.encode_context(batch.inputs), batch.sids_BNT) for model in (policy, start)
        )
        total += float((now_BN - then_BN)[batch.mask_BN].abs().sum())
        count += int(batch.mask_BN.sum())
    return total / max(1, count)


def _calibration(learner: OnlineLearner, lists: Sequence[RewardedCandidates]) -> float:
    """Return the expected worth of all responses to what was shown over that of those that came."""
    expected = came = 0.0
    for rewarded in lists:
        shown = rewarded.places_N != NOT_SHOWN
        rate = learner.rewards.response_rate(
            rewarded.keys_N[shown], rewarded.log_ref_N[shown], rewarded.places_N[shown]
        )
        expected += float((rate * rewarded.click_value_N[shown]).sum())
        came += float((rewarded.responded_N * rewarded.click_value_N)[shown].sum())
    return expected / came if came else float("inf")


@torch.no_grad()
def _ecpm_calibration(model: LazyAr, lists: Sequence[RewardedCandidates]) -> float:
    """Return what the eCPM token expects of all responses that came over what is expected to be charged for them."""
    responded = [rewarded for rewarded in lists if rewarded.responded_N.any()]
    expected = charged = 0.0
    for first in range(0, len(responded), BATCH):
        part = responded[first : first + BATCH]
        batch = collate_lists(part, [rewarded.click_value_N for rewarded in part], model)
        response_BN = batch.response_micros_BN > 0.0
        value_BN = expected_ecpm(model, model.encode_context(batch.inputs), batch.sids_BNT)
        expected += float(value_BN[response_BN].sum())
        charged += float(batch.value_micros_BN[response_BN].sum())
    return expected / charged if charged else float("inf")


def _responses(lists: Sequence[RewardedCandidates], ad_sids_AT: np.ndarray) -> TrainingSet:
    """Return every response of the lists as a sample."""
    list_M, item_M = np.array([(row, n) for row, r in enumerate(lists) for n in np.flatnonzero(r.responded_N)]).T
    return TrainingSet.from_lists(
        histories=[rewarded.history for rewarded in lists],
        users=range(len(lists)),
        list_M=list_M,
        target_sids_MT=np.stack([lists[row].sids_NT[n] for row, n in zip(list_M, item_M, strict=True)]),
        behaviors_M=np.full(len(list_M), CLICK),
        value_micros_M=np.array([lists[row].response_value_N[n] for row, n in zip(list_M, item_M, strict=True)]),
        ad_sids_AT=ad_sids_AT,
    )
