"""What the decode engine is measured on: a random policy, users with full histories, and live SIDs with real fan-out.

Shapes: N live SIDs, P live prefixes, T SID levels, B requests, W beams.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from gr4ad_core.decoding.beam_search import BeamResult, beam_search
from gr4ad_core.decoding.constraints import TorchTrie
from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.context import ContextInputs, collate_contexts
from gr4ad_core.model.history import UserHistory
from gr4ad_core.model.lazy_ar import LazyAr
from gr4ad_core.sid.trie import LiveTrie
from numpy.typing import NDArray

Ints = NDArray[np.int64]

LEAST_FAN_OUT: Final = 4
"""Mean number of live children of a live prefix, at the least."""
LOGIT_SPREAD: Final = 2.0
"""Standard deviation of a level's logits: a freshly made model's is 0.3, whose distributions are all but uniform."""
BATCHES: Final = 4
"""Batches of requests that take turns, so that no batch is always the one before."""
DAY_S: Final = 86_400.0
REQUEST_TIME: Final = 1.7e9


@dataclass(frozen=True)
class Setting:
    """What to decode."""

    config: LazyArConfig
    """Shape of the model; `max_history` is the number of events of every user."""
    ads: int
    """Live SIDs N."""
    widths: tuple[int, ...]
    """Beams to keep at each of the T levels."""
    batch: int
    """Requests B of one model call."""
    seed: int
    """Of every random choice."""
    device: str = "cpu"
    """Torch device of the policy, the live SIDs and the requests."""


@dataclass(frozen=True)
class Workload:
    """A policy, what is live, and who asks."""

    setting: Setting
    sids_NT: Ints
    live_counts: tuple[int, ...]
    """Distinct live prefixes of length 1 … T."""
    trie: TorchTrie
    model: LazyAr
    """The policy as it was made, in float32."""
    batches: tuple[ContextInputs, ...]
    """Requests, `setting.batch` each."""

    @classmethod
    def draw(cls, setting: Setting) -> Workload:
        """Draw all of it from the setting's seed."""
        sids_NT = drawn_sids(setting.ads, setting.config.level_sizes, np.random.default_rng(setting.seed))
        trie = LiveTrie.build(sids_NT, setting.config.level_sizes)
        model = random_policy(setting.config, setting.seed).to(setting.device)
        on_device = TorchTrie.from_view(trie.view, setting.device)
        return cls(setting, sids_NT, trie.live_counts, on_device, model, ()).with_policy(model)

    def policy(self, **changes: Any) -> LazyAr:
        """Make a random policy of the setting's shape with some fields changed, on its device."""
        return random_policy(replace(self.setting.config, **changes), self.setting.seed).to(self.setting.device)

    def with_policy(self, model: LazyAr) -> Workload:
        """Return the same live SIDs with another policy, and requests with as many events as it reads."""
        rng = np.random.default_rng(self.setting.seed)
        setting = replace(self.setting, config=model.config)
        batches = tuple(
            drawn_requests(setting.batch, self.sids_NT, model.config, rng).to(setting.device) for _ in range(BATCHES)
        )
        return replace(self, setting=setting, model=model, batches=batches)

    def served(self, compute_type: torch.dtype = torch.float32) -> LazyAr:
        """Copy the policy as a server has it."""
        return copy.deepcopy(self.model).for_serving(compute_type)

    @cached_property
    def engine(self) -> LazyAr:
        """The policy as a server has it, in float32."""
        return self.served()

    @property
    def fan_outs(self) -> tuple[float, ...]:
        """Mean number of live children of the live prefixes of length 1 … T − 1."""
        return tuple(after / before for before, after in zip(self.live_counts, self.live_counts[1:], strict=False))

    @cached_property
    def single_requests(self) -> tuple[ContextInputs, ...]:
        """The first request of every batch, alone."""
        return tuple(request(batch, 0) for batch in self.batches)

    def decode(self, number: int, *, model: LazyAr | None = None, widths: Sequence[int] = ()) -> BeamResult:
        """Decode one of the batches, from histories to SIDs, with the engine as it serves.

        Args:
            number: Of the batch; numbers beyond the last begin anew.
            model: Another policy than the workload's `engine`.
            widths: Other widths than the setting's.
        """
        inputs = self.batches[number % BATCHES]
        return decode(model or self.engine, inputs, self.trie, tuple(widths) or self.setting.widths)


@torch.inference_mode()
def decode(model: LazyAr, inputs: ContextInputs, trie: TorchTrie, widths: tuple[int, ...]) -> BeamResult:
    """Decode requests from histories to SIDs: context, trunk, beam search; without the eCPM step."""
    return beam_search(model, model.encode_context(inputs), trie, widths)


def request(inputs: ContextInputs, row: int) -> ContextInputs:
    """Return one request of a batch as a batch of one."""
    return ContextInputs(**{name: value[row : row + 1] for name, value in vars(inputs).items()})


def engine_shape(
    level_sizes: tuple[int, ...],
    *,
    d_model: int = 256,
    n_heads: int = 8,
    n_layers: int = 9,
    n_lazy: int = 6,
    max_history: int = 128,
) -> LazyArConfig:
    """Return the shape of policy that the engine is measured with, by default a mid-sized one (see `LazyArConfig`)."""
    return LazyArConfig(
        level_sizes=level_sizes,
        d_model=d_model,
        n_heads=n_heads,
        n_layers=n_layers,
        n_lazy=n_lazy,
        d_ff=2 * d_model,
        kv_groups=3,
        max_history=max_history,
        n_ecpm_buckets=64,
    )


def random_policy(config: LazyArConfig, seed: int) -> LazyAr:
    """Make a model in eval mode with random weights and heads of a size that training gives them.

    The weights are those that training begins with, but for the rows of the level heads: their entries have the
    standard deviation `LOGIT_SPREAD · d^-1/2`, so that the logits of a state, which the final norm gives a mean square
    of one, spread by `LOGIT_SPREAD`. The perplexity of such a level is about `V · exp(−LOGIT_SPREAD² / 2)`, a seventh
    of its size: neither uniform nor a single code.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = LazyAr(replace(config, tied_heads=False)).eval()
        assert model.head is not None
        model.head.table.weight.normal_(std=LOGIT_SPREAD * config.d_model**-0.5)
        means = 1e6 * torch.rand(config.n_ecpm_buckets).cumsum(0)
        model.set_ecpm_buckets(means[1:], means)
    return model


def drawn_sids(count: int, level_sizes: Sequence[int], rng: np.random.Generator) -> Ints:
    """Draw live SIDs level by level, each live prefix with a geometric number of children.

    As many first codes are live as leave every other level a mean fan-out of `LEAST_FAN_OUT`; where all first codes are
    live, the mean fan-out of the other levels rises instead, to the same number at each.

    Args:
        count: SIDs N.
        level_sizes: Codebook size of each of the T levels, each a power of two.
        rng: Source of chance.

    Returns:
        `[N, T]`, distinct, in no order that means anything.

    Raises:
        ValueError: A size is no power of two, or the levels have no room for so many SIDs.
    """
    if any(size & (size - 1) for size in level_sizes):
        raise ValueError(f"level_sizes: {tuple(level_sizes)}: give powers of two")
    deeper = len(level_sizes) - 1
    first = max(min(level_sizes[0], count // LEAST_FAN_OUT**deeper), 1)
    sids_PT: Ints = rng.choice(level_sizes[0], first, replace=False)[:, None]
    for level in range(1, len(level_sizes)):
        fan_out = (count / len(sids_PT)) ** (1 / (deeper + 1 - level))
        total = count if level == deeper else int(len(sids_PT) * fan_out + 0.5)
        sids_PT = _grown(sids_PT, total, level_sizes[level], rng)
    return sids_PT


def _grown(prefixes_PT: Ints, total: int, size: int, rng: np.random.Generator) -> Ints:
    """Give each prefix at least one child, so that there are `total` of them, each of `size` codes."""
    prefixes = len(prefixes_PT)
    if not prefixes <= total <= prefixes * size:
        raise ValueError(f"ads: {total} children of {prefixes} live prefixes among {size} codes: give fewer ads")
    counts_P = np.minimum(rng.geometric(prefixes / total, prefixes), size)
    while difference := total - int(counts_P.sum()):
        room = np.flatnonzero(counts_P < size if difference > 0 else counts_P > 1)
        some = np.unique(rng.choice(room, min(abs(difference), prefixes // 10 + 1)))
        counts_P[some[: abs(difference)]] += np.sign(difference)
    # An odd step never meets a code twice on its way around a power of two.
    starts_P = rng.integers(0, size, prefixes)
    steps_P = 2 * rng.integers(0, size, prefixes) + 1
    ranks_N = np.arange(total) - np.repeat(np.cumsum(counts_P) - counts_P, counts_P)
    codes_N = (np.repeat(starts_P, counts_P) + ranks_N * np.repeat(steps_P, counts_P)) % size
    grown: Ints = np.concatenate([np.repeat(prefixes_PT, counts_P, axis=0), codes_N[:, None]], axis=1)
    return grown


def drawn_requests(count: int, sids_NT: Ints, config: LazyArConfig, rng: np.random.Generator) -> ContextInputs:
    """Draw requests of users whose histories are full, of live ads at random."""
    events = config.max_history
    histories = [
        UserHistory(
            sids=sids_NT[rng.integers(0, len(sids_NT), events)],
            behaviors=rng.integers(1, 4, events),
            event_times=np.sort(REQUEST_TIME - 30 * DAY_S * rng.random(events)),
            request_time=REQUEST_TIME,
        )
        for _ in range(count)
    ]
    return collate_contexts(histories, config)


@torch.inference_mode()
def perplexities(workload: Workload) -> tuple[float, ...]:
    """Return each level's perplexity at the prefixes that the engine's beams hold at their end: exp of mean entropy."""
    model, result = workload.model, workload.decode(0)
    h_BWPD = model.decode_paths(model.encode_context(workload.batches[0]), result.sids_BWT.clamp(min=0))
    found = []
    for level in range(model.config.n_levels):
        log_p = model.level_logits(level, h_BWPD[:, :, level][result.valid_BW]).log_softmax(-1)
        found.append(float((-(log_p.exp() * log_p).sum(-1)).mean().exp()))
    return tuple(found)
