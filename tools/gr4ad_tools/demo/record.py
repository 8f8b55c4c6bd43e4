"""What a demo run saw: filled by its phases, read by the summary and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.demo.online import OnlinePhase
from gr4ad_tools.figures import Figure
from gr4ad_tools.live_index import LiveIndexDelays
from gr4ad_tools.otlp_receiver import Span
from gr4ad_tools.traffic import Traffic


@dataclass(frozen=True)
class GeneratedFor:
    """A held-out user, what was known of him and what was generated."""

    user_id: str
    history: Sequence[tuple[str, str]]  # (title, behaviour)
    history_length: int
    target: tuple[str, str]  # (ad_id, title)
    generated: Sequence[tuple[str, str, tuple[int, ...], float, int]]  # (ad_id, title, sid, log_prob, ecpm micros)


@dataclass
class Record:
    """Everything the summary and the report are made from."""

    source: str = ""
    codebook_id: str = ""
    level_sizes: tuple[int, ...] = ()
    sids_NT: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    model: dict[str, Any] = field(default_factory=dict)
    loss_steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)  # while policies are swapped
    probed_traffic: Traffic = field(default_factory=Traffic)  # beside the probes of the live index
    traffic_start: float = 0.0
    swap_times: list[float] = field(default_factory=list)
    policy_swaps: int = 0  # as the generator counts them
    delays: LiveIndexDelays = field(default_factory=LiveIndexDelays)
    online: OnlinePhase = field(default_factory=OnlinePhase)
    bids_made_up: bool = False
    learning_trace: list[Span] = field(default_factory=list)
    request_trace: list[Span] = field(default_factory=list)
    change_trace: list[Span] = field(default_factory=list)
    users: list[GeneratedFor] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)
