"""One online run's learning in memory, and how it is kept on disk; everything here computes or blocks."""

from __future__ import annotations

import copy
import math
import tempfile
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from gr4ad.reward.v1 import reward_pb2
from gr4ad_core.learning.checkpoint import load_checkpoint, save_checkpoint
from gr4ad_core.learning.list_objective import Preference
from gr4ad_core.learning.online import OnlineConfig, OnlineLearner, RewardedCandidates
from gr4ad_core.learning.online_state import load_online_state, save_online_state
from gr4ad_core.learning.presets import training_preset
from gr4ad_core.learning.publish_gate import GateLimits, GateReport, check
from gr4ad_core.learning.train_step import DivergedError
from gr4ad_core.learning.value_label import ChargeRates
from gr4ad_runtime.artifacts import ArtifactStore

from rspo_trainer.catalogue import Catalogue
from rspo_trainer.online_lists import ListTranslator, is_held_out
from rspo_trainer.policy_store import NewPolicy, Policy
from rspo_trainer.recipe import DEFAULT_PRESET

POLICIES = "policies"
STATES = "online"
HELD_OUT_LISTS = 2000
"""The latest held-out lists that a gate measures on."""
MEANS = ("loss", "preference_loss", "vsl_loss", "log_ratio")


@dataclass
class Counts:
    """What a run has seen and done; plain numbers, kept with its state."""

    lists: int = 0
    """Lists read."""
    learned_lists: int = 0
    """Lists learned from: shown, and not held out."""
    held_out_lists: int = 0
    """Shown lists of held-out users."""
    published: int = 0
    """Policies published; in a policy's own metrics, those before it."""
    refused: int = 0
    """Policies that the gate refused."""
    diverged: int = 0
    """Times that the loss was not finite and learning went back to the last policy that passed."""


class OnlineSession:
    """Learns from lists, measures, and writes policies and states; restored from the latest state if there is one.

    Attributes:
        counts: Of all lists so far.
        cursor: Everything up to it is learned.
        held_out_after: The held-out lists that a gate measures on come after it.
    """

    def __init__(
        self,
        artifacts: ArtifactStore,
        run_id: str,
        start: Policy,
        catalogue: Catalogue,
        device: str,
        preference: Preference,
    ) -> None:
        """Load the policy to start from.

        Raises:
            Gr4adError: The artifact store does not have it.
            CheckpointError: It is not whole, or of another codebook than the catalogue.
        """
        self.counts = Counts()
        self.cursor = 0
        self.held_out_after = 0
        self._artifacts = artifacts
        self._run_id = run_id
        with tempfile.TemporaryDirectory(prefix="gr4ad-start-") as scratch:
            folder = artifacts.fetch_folder(f"{POLICIES}/{start.policy_id}", Path(scratch) / "policy")
            self._start, self._manifest = load_checkpoint(folder, catalogue.codebook_id, start.sha256)
        self._start.to(device)
        preset = str(self._manifest.training_config.get("preset") or DEFAULT_PRESET)
        _, vsl = training_preset(preset, catalogue.level_sizes)
        self._rates = ChargeRates(
            {name: tuple(rates) for name, rates in self._manifest.training_config.get("charge_rates", {}).items()}
        )
        self._learner = OnlineLearner(copy.deepcopy(self._start), OnlineConfig(preference=preference, vsl=vsl))
        self._held_out: deque[tuple[int, RewardedCandidates]] = deque(
            maxlen=HELD_OUT_LISTS
        )  # with their place in the log
        self._limits = GateLimits()
        self._totals_before: dict[str, float] = {}
        self.know(catalogue)

    @property
    def codebook_id(self) -> str:
        """Codebook of the policy."""
        return self._manifest.codebook_id

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return self._learner.steps

    @property
    def measurable(self) -> bool:
        """Whether there are held-out lists enough for a gate."""
        return len(self._held_out) >= self._limits.least_lists

    def know(self, catalogue: Catalogue) -> None:
        """Use a newer reading of the catalogue, of the same codebook."""
        self._catalogue = catalogue
        self._translator = ListTranslator(catalogue.ads, self._rates)

    def learn(self, lists: Sequence[reward_pb2.RewardedList], cursor: int) -> None:
        """Learn from the lists up to a cursor. Where the loss is not finite, go back to the last policy that passed."""
        self.counts.held_out_lists += self.gather_held_out(lists, cursor)
        translated = [
            self._translator.translate(rewarded) for rewarded in lists if not is_held_out(rewarded.served_list)
        ]
        learned = [candidates for candidates in translated if candidates is not None]
        try:
            self._learner.learn(learned)
        except DivergedError:
            self._learner.go_back()
            self.counts.diverged += 1
        self.counts.lists += len(lists)
        self.counts.learned_lists += len(learned)
        self.cursor = cursor

    def gather_held_out(self, lists: Sequence[reward_pb2.RewardedList], cursor: int) -> int:
        """Keep the held-out ones of the lists up to a cursor for the gate, and return how many there were."""
        gathered = 0
        for place, rewarded in enumerate(lists, start=cursor - len(lists) + 1):  # the log numbers lists without gaps
            candidates = self._translator.translate(rewarded) if is_held_out(rewarded.served_list) else None
            if candidates is not None:
                self._held_out.append((place, candidates))
                gathered += 1
        return gathered

    def means(self) -> dict[str, float]:
        """Return the mean metrics of the steps since the last call; nothing without a step."""
        totals, before = dict(self._learner.totals), self._totals_before
        steps = self._learner.steps - int(before.get("steps", 0))
        self._totals_before = totals | {"steps": self._learner.steps}
        return {name: (totals[name] - before.get(name, 0.0)) / steps for name in MEANS} if steps else {}

    def check(self) -> GateReport:
        """Measure the policy; one that is refused is dropped for the last that passed."""
        held_out = [candidates for _, candidates in self._held_out]
        report = check(self._learner, self._start, held_out, self._catalogue.ads.sids, self._limits)
        if report.refusals:
            self.counts.refused += 1
            self._learner.go_back()
        else:
            self._learner.approve()
        return report

    def write_policy(self, metrics: dict[str, float]) -> NewPolicy:
        """Write the policy to the artifact store.

        Raises:
            CheckpointError: A weight is not finite, or the disk refuses.
            Gr4adError: The artifact store does.
        """
        policy_id = f"online-{datetime.now(UTC):%Y%m%dt%H%M%S}-{uuid.uuid4().hex[:8]}"
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        extra: dict[str, Any] = {
            **self._manifest.training_config,
            "source": "online",
            "preference": self._learner.config.preference,
            "run_id": self._run_id,
            "started_from": self._manifest.policy_id,
            "cursor": self.cursor,
        }
        with tempfile.TemporaryDirectory(prefix="gr4ad-policy-") as scratch:
            folder = Path(scratch) / policy_id
            manifest = save_checkpoint(
                folder, self._learner.policy, policy_id, self._manifest.codebook_id, finite, extra
            )
            uri = self._artifacts.publish_folder(folder, f"{POLICIES}/{policy_id}")
        return NewPolicy(policy_id, manifest.codebook_id, manifest.sha256, uri, finite)

    def write_state(self) -> str:
        """Write all that learning goes on from to the artifact store, and return its name there.

        Raises:
            CheckpointError: A number is not finite.
            Gr4adError: The artifact store refuses.
        """
        name = f"{STATES}/{self._run_id}-{uuid.uuid4().hex[:8]}"
        with tempfile.TemporaryDirectory(prefix="gr4ad-online-") as scratch:
            folder = Path(scratch) / "state"
            values = {
                "cursor": self.cursor,
                "held_out_after": self._held_out[0][0] - 1 if self._held_out else self.cursor,
                "counts": vars(self.counts),
                "totals_before": self._totals_before,
            }
            save_online_state(folder, self._learner, values)
            self._artifacts.publish_folder(folder, name)
        return name

    def restore(self, name: str) -> None:
        """Go on from a state; `gather_held_out` wants the lists from `held_out_after` to the cursor again.

        Raises:
            CheckpointError: It is not whole.
            Gr4adError: The artifact store does not have it.
        """
        with tempfile.TemporaryDirectory(prefix="gr4ad-online-") as scratch:
            values = load_online_state(self._artifacts.fetch_folder(name, Path(scratch) / "state"), self._learner)
        self.cursor, self.held_out_after = int(values["cursor"]), int(values["held_out_after"])
        self.counts = Counts(**values["counts"])
        self._totals_before = dict(values["totals_before"])

    def forget_state(self, name: str) -> None:
        """Remove a state that a newer one has replaced.

        Raises:
            Gr4adError: The artifact store refuses.
        """
        self._artifacts.delete_folder(name)


def limit_threads(threads: int) -> None:
    """Let torch compute with so many threads from now on."""
    torch.set_num_threads(threads)
