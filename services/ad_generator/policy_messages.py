"""What the server and a policy's process say to each other.

Shapes: B requests, N candidates, A live ads, C changes, T SID levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gr4ad_core.decoding.beam_schedule import BeamPlan
from gr4ad_core.model.history import UserHistory
from numpy.typing import NDArray


@dataclass(frozen=True)
class WorkerSettings:
    """What a process needs to know at its start."""

    codebook_id: str
    """Codebook that the policy must be of."""
    sha256: str
    """Digest that its weights must have."""
    device: str
    """Torch device to compute on."""
    compute_type: str
    """Type that layers compute in, a name of torch's."""
    torch_threads: int
    """Threads of one model call."""


@dataclass(frozen=True)
class Loaded:
    """The policy is in memory."""

    policy_id: str
    level_sizes: tuple[int, ...]
    in_hardware: bool
    """Whether the device multiplies numbers of the compute type in hardware."""
    lacks_compiler: bool
    """Whether layers run operation by operation on a GPU, since nothing there compiles them."""


@dataclass(frozen=True)
class Refused:
    """The checkpoint can never be served."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """Loading or decoding raised."""

    error: str


@dataclass(frozen=True)
class Serve:
    """The tryout is over: from now on, compute with full priority."""


@dataclass(frozen=True)
class LiveAds:
    """All live ads from now on; not answered."""

    slots_A: NDArray[np.int64]
    sids_AT: NDArray[np.int32]


@dataclass(frozen=True)
class LiveChanges:
    """Ads that may have come or gone since the message before, as they are now; not answered."""

    slots_C: NDArray[np.int64]
    sids_CT: NDArray[np.int64]
    live_C: NDArray[np.bool_]


@dataclass(frozen=True)
class Decode:
    """One model call; answered by `Decoded` or `Failed`."""

    widths: tuple[int, ...]
    """Beams to keep at each level, where so many prefixes are live."""
    histories: Sequence[UserHistory]
    """The B requests."""
    wanted: int
    """Candidates of each, at most."""


@dataclass(frozen=True)
class Stages:
    """When a model call began, in Unix nanoseconds, and how long its parts took, in microseconds."""

    started_ns: int
    encode_us: int
    level_us: tuple[int, ...]
    ecpm_us: int


@dataclass(frozen=True)
class Decoded:
    """What a model call found, by falling log-probability."""

    slots_BN: NDArray[np.int64]
    """Slot of each candidate; −1 behind the end of a list."""
    log_probs_BN: NDArray[np.float64]
    """Natural logarithms; −∞ behind the end of a list."""
    ecpm_BN: NDArray[np.float64]
    """Expected eCPM, micros."""
    plan: BeamPlan
    """Widths of the search."""
    stages: Stages
    """When it ran, and for how long."""
