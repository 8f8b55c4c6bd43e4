"""What the server and a policy's process say to each other.

Shapes: B requests, N candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gr4ad_core.model.history import UserHistory
from gr4ad_core.sid.trie import LiveTrie
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
    torch_threads: int
    """Threads of one model call."""


@dataclass(frozen=True)
class Loaded:
    """The policy is in memory."""

    policy_id: str
    level_sizes: tuple[int, ...]


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
class Decode:
    """One model call; answered by `Decoded` or `Failed`."""

    trie: LiveTrie | None
    """The live SIDs from now on; None where they are those of the call before."""
    widths: tuple[int, ...]
    """Beams to keep at each level."""
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

    places_BN: NDArray[np.int64]
    """Place of each candidate in the trie's order; −1 behind the end of a list."""
    log_probs_BN: NDArray[np.float64]
    """Natural logarithms; −∞ behind the end of a list."""
    ecpm_BN: NDArray[np.float64]
    """Expected eCPM, micros."""
    stages: Stages
    """When it ran, and for how long."""
