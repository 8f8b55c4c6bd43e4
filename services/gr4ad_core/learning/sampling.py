"""Training samples: one target ad behind the events that preceded it, cut into mini-batches (method.md §3.1).

All events lie in flat columns and a sample points at a span of them, so a history is never copied.
Shapes: N events, M samples, A ads, B samples of a batch, T SID levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr4ad_core.learning.ad_table import AdTable
from gr4ad_core.learning.data_folder import Interactions
from gr4ad_core.learning.value_label import CLICK, ChargeRates
from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.context import ContextInputs, collate_contexts
from gr4ad_core.model.history import UserHistory

__all__ = ["AdTable", "Batch", "TrainingSet"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

BATCHES_SORTED_TOGETHER = 32  # Wide enough that lengths inside a batch nearly agree, narrow enough to stay shuffled.


@dataclass(frozen=True)
class Batch:
    """A mini-batch of samples."""

    inputs: ContextInputs
    """The histories."""
    sids_BT: Tensor
    """Target SIDs, int64."""
    samples_B: IntArray
    """Which samples of the set these are."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`."""
        return replace(self, inputs=self.inputs.to(device), sids_BT=self.sids_BT.to(device))


@dataclass(frozen=True)
class TrainingSet:
    """Samples over shared event columns; samples of one user are in time order."""

    event_sids_NT: IntArray
    event_behaviors_N: IntArray
    event_times_N: FloatArray
    context_start_M: IntArray
    """First event of the sample's history."""
    context_end_M: IntArray
    """One past the last event of the sample's history."""
    request_times_M: FloatArray
    """Moment of the target in Unix seconds, NaN where unknown; gaps are measured from here."""
    users_M: IntArray
    """Whose sample it is."""
    target_sids_MT: IntArray
    behaviors_M: IntArray
    """What the user did with the target: 1 impression, 2 click, 3 conversion."""
    value_micros_M: FloatArray
    """Value label of the target in micros per mille."""
    ad_sids_AT: IntArray
    """SIDs of all ads that may be generated when the policy is evaluated."""
    features: tuple[Mapping[str, str], ...] = ()
    """User and request features per sample, or nothing."""
    skipped_events: int = 0
    """Events left out since their ad is not in the ad table."""
    charge_rates: ChargeRates = field(default_factory=lambda: ChargeRates({}))
    """Rates behind the value labels, measured on the same events."""

    def __len__(self) -> int:
        """Return the number of samples M."""
        return len(self.users_M)

    @classmethod
    def from_interactions(cls, interactions: Interactions, ads: AdTable) -> TrainingSet:
        """Make every event but the first of each user a target, with the events before it as history.

        Args:
            interactions: What the users did, the held-out events already dropped.
            ads: The ads with their SIDs; events of other ads are skipped and counted.

        Raises:
            ValueError: No user has two events of known ads.
        """
        row_of = {ad_id: row for row, ad_id in enumerate(ads.ad_ids)}
        ad_of_item = np.array([row_of.get(item_id, -1) for item_id in interactions.item_ids], np.int64)
        users_all = np.repeat(np.arange(len(interactions.offsets) - 1), np.diff(interactions.offsets))
        ads_all = ad_of_item[interactions.items] if len(interactions.items) else np.zeros(0, np.int64)
        known = ads_all >= 0
        rows, users = ads_all[known], users_all[known]
        behaviors, times = interactions.behaviors[known], interactions.timestamps[known]

        is_first = np.diff(users, prepend=-1) != 0
        first_of_event = np.maximum.accumulate(np.where(is_first, np.arange(len(users)), 0))
        targets = np.flatnonzero(~is_first)
        if not len(targets):
            raise ValueError(
                f"interactions: {len(users)} events of known ads, none preceded by another of its user: "
                "give users with two or more events of ads in the ad table"
            )
        conversion_types = np.array(ads.conversion_types)[rows]
        rates = ChargeRates.measure(conversion_types, behaviors)
        values = rates.value_micros(ads.bid_micros[rows], conversion_types, behaviors)
        return cls(
            event_sids_NT=ads.sids[rows],
            event_behaviors_N=behaviors,
            event_times_N=times,
            context_start_M=first_of_event[targets],
            context_end_M=targets,
            request_times_M=times[targets],
            users_M=users[targets],
            target_sids_MT=ads.sids[rows[targets]],
            behaviors_M=behaviors[targets],
            value_micros_M=values[targets],
            ad_sids_AT=ads.sids,
            skipped_events=int((~known).sum()),
            charge_rates=rates,
        )

    @classmethod
    def from_lists(
        cls,
        histories: Sequence[UserHistory],
        users: Sequence[int],
        list_M: IntArray,
        target_sids_MT: IntArray,
        behaviors_M: IntArray,
        value_micros_M: FloatArray,
        ad_sids_AT: IntArray,
    ) -> TrainingSet:
        """Make every shown ad of rewarded lists a target of its list's history.

        Args:
            histories: One per list.
            users: Whose list it is, one number per list.
            list_M: Which list each shown ad belongs to.
            target_sids_MT: SIDs of the shown ads.
            behaviors_M: The strongest response to each.
            value_micros_M: The value of each in micros per mille.
            ad_sids_AT: SIDs of all ads that may be generated when the policy is evaluated.

        Raises:
            ValueError: There is no shown ad.
        """
        if not len(list_M):
            raise ValueError("lists: no shown ad in them: give lists with at least one impression")
        ends = np.cumsum([len(h.behaviors) for h in histories])
        starts = ends - [len(h.behaviors) for h in histories]
        times = np.array([h.request_time for h in histories])
        users_M = np.array(users, np.int64)[list_M]
        order = np.lexsort((times[list_M], users_M))
        list_M = list_M[order]
        return cls(
            event_sids_NT=np.concatenate([h.sids for h in histories]),
            event_behaviors_N=np.concatenate([h.behaviors for h in histories]),
            event_times_N=np.concatenate([h.event_times for h in histories]),
            context_start_M=starts[list_M],
            context_end_M=ends[list_M],
            request_times_M=times[list_M],
            users_M=users_M[order],
            target_sids_MT=target_sids_MT[order],
            behaviors_M=behaviors_M[order],
            value_micros_M=value_micros_M[order],
            ad_sids_AT=ad_sids_AT,
            features=tuple(histories[i].features for i in list_M),
        )

    def select(self, samples: IntArray) -> TrainingSet:
        """Return the set of these samples, over the same event columns."""
        return replace(
            self,
            context_start_M=self.context_start_M[samples],
            context_end_M=self.context_end_M[samples],
            request_times_M=self.request_times_M[samples],
            users_M=self.users_M[samples],
            target_sids_MT=self.target_sids_MT[samples],
            behaviors_M=self.behaviors_M[samples],
            value_micros_M=self.value_micros_M[samples],
            features=tuple(self.features[i] for i in samples) if self.features else (),
        )

    def split_validation(self, n_users: int, rng: np.random.Generator) -> tuple[TrainingSet, TrainingSet]:
        """Hold the last response of up to `n_users` drawn users out of training; a tenth of all samples at most.

        A response is a click or a conversion; of users without one their last impression is held out. What followed it
        leaves the training part as well, since its history holds the held-out event.
        """
        positions = np.arange(len(self))
        ends = np.append(np.flatnonzero(np.diff(self.users_M) != 0), len(self) - 1)
        answered = np.maximum.accumulate(np.where(self.behaviors_M >= CLICK, positions, -1))[ends]
        starts = np.append(0, ends[:-1] + 1)
        last = np.where(answered >= starts, answered, ends)
        drawn = np.sort(rng.permutation(len(ends))[: min(n_users, len(self) // 10)])
        left_out = np.zeros(len(self), dtype=bool)
        for user in drawn:
            left_out[last[user] : ends[user] + 1] = True
        return self.select(np.flatnonzero(~left_out)), self.select(last[drawn])

    def epoch(self, batch_size: int, rng: np.random.Generator, samples: IntArray | None = None) -> Iterator[IntArray]:
        """Yield the samples once each in random batches, those of like history length together.

        Args:
            batch_size: Samples B of a batch; the last ones may be fewer.
            rng: Decides the order.
            samples: The samples to draw from, all by default.
        """
        order = rng.permutation(np.arange(len(self)) if samples is None else samples)
        lengths = self.context_end_M - self.context_start_M
        batches: list[IntArray] = []
        for start in range(0, len(order), BATCHES_SORTED_TOGETHER * batch_size):
            group = order[start : start + BATCHES_SORTED_TOGETHER * batch_size]
            group = group[np.argsort(lengths[group], kind="stable")]
            batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
        for index in rng.permutation(len(batches)):
            yield batches[index]

    def batch(
        self, samples: IntArray, config: LazyArConfig, without_history_B: NDArray[np.bool_] | None = None
    ) -> Batch:
        """Collate samples as the generator collates requests, so that both see the same tensors.

        Args:
            samples: Which samples.
            config: Of the model.
            without_history_B: True at samples shown as if their user were new; none by default.
        """
        ends = self.context_end_M[samples]
        starts = np.maximum(self.context_start_M[samples], ends - config.max_history)
        if without_history_B is not None:
            starts = np.where(without_history_B, ends, starts)
        histories = [
            UserHistory(
                sids=self.event_sids_NT[start:end],
                behaviors=self.event_behaviors_N[start:end],
                event_times=self.event_times_N[start:end],
                request_time=float(self.request_times_M[sample]),
                features=self.features[sample] if self.features else {},
            )
            for sample, start, end in zip(samples, starts, ends, strict=True)
        ]
        return Batch(
            inputs=collate_contexts(histories, config),
            sids_BT=torch.from_numpy(self.target_sids_MT[samples]),
            samples_B=samples,
        )
