"""Learning from rewarded lists as they come in (method.md §3.2, §3.3, §5).

Every list a generator returned is ordered anew by expected eCPM, p(response) · value of a response, from a reward model
that learns from the same stream; RSPO moves the policy towards that order, and VSL imitates what got a response. p_ref
is the likelihood that was logged, of whichever policy served: each publication that is served refreshes the reference.
Shapes: B lists, N candidates of the longest, T SID levels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr4ad_core.learning.list_objective import Preference, ShownLists, list_loss
from gr4ad_core.learning.reward_model import RewardModel, ShownAds
from gr4ad_core.learning.rspo import RspoConfig
from gr4ad_core.learning.train_step import DivergedError
from gr4ad_core.learning.vsl import VslConfig
from gr4ad_core.model.context import collate_contexts
from gr4ad_core.model.history import UserHistory
from gr4ad_core.model.lazy_ar import LazyAr

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NOT_SHOWN = -1
"""Place of a candidate that was returned and not shown."""


@dataclass(frozen=True)
class RewardedCandidates:
    """One list with what came of it: n candidates in the order they were returned."""

    user_key: int
    """Whose list it is, any number that is the user's own."""
    history: UserHistory
    """What was known of the user."""
    sids_NT: IntArray
    """SIDs of the candidates."""
    keys_N: IntArray
    """Which ads, any number that is the ad's own."""
    log_ref_N: FloatArray
    """log p_ref(y|X) as logged; all 0 where the list came from another pipeline."""
    has_ref: bool
    """Whether p_ref was logged."""
    places_N: IntArray
    """Place among the shown ads, from 0; `NOT_SHOWN` for the others."""
    click_value_N: FloatArray
    """What a click on each is worth: its expected charge, in micros per mille."""
    response_value_N: FloatArray
    """What the response was worth, in micros per mille; 0 where there was none."""

    @property
    def responded_N(self) -> NDArray[np.bool_]:
        """Which candidates were clicked or converted."""
        return self.response_value_N > 0.0


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """How a policy learns online."""

    learning_rate: float = 2e-4
    """Of AdamW; constant, since the stream has no end. A fifteenth of supervised training's peak."""
    warmup_steps: int = 10
    """Steps in which the rate rises from 0, while AdamW gets to know the gradients."""
    batch_lists: int = 32
    """Lists per step."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient of all weights together."""
    reward_window: int = 200_000
    """Shown ads that the reward model remembers."""
    preference: Preference = "rspo"
    """RSPO, or DPO as its foil."""
    rspo: RspoConfig = field(default_factory=RspoConfig)
    """β and δ."""
    vsl: VslConfig = field(default_factory=VslConfig)
    """λ_e, λ_mtp and the smoothing of the last level."""


class OnlineLearner:
    """Updates a policy in place, list by list.

    Attributes:
        policy: The policy in training, in evaluation mode: dropout would make the likelihoods disagree with p_ref.
        rewards: The reward model.
        steps: Optimiser steps done.
        totals: Sums over all steps of the metrics of `list_loss` and the loss, for means between two looks.
    """

    def __init__(self, policy: LazyAr, config: OnlineConfig) -> None:
        """Start from a trained policy; its weights are changed from now on."""
        self.policy = policy.eval()
        self.config = config
        self.rewards = RewardModel(config.reward_window)
        self.steps = 0
        self.totals: dict[str, float] = {}
        self._names = [name for name, p in policy.named_parameters() if p.requires_grad]
        weights = [p for p in policy.parameters() if p.requires_grad]
        # No decay: it would pull the policy away from the reference for nothing.
        self._optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.approve()

    def approve(self) -> None:
        """Keep the weights as they are, for `go_back`."""
        self._approved = copy.deepcopy(self.policy.state_dict())

    def go_back(self) -> None:
        """Return to the weights that were approved last; the optimiser forgets what led away from them."""
        self.policy.load_state_dict(self._approved)
        self._optimizer.state.clear()

    def learn(self, lists: Sequence[RewardedCandidates]) -> int:
        """Learn from some lists, in steps of about `batch_lists`; return how many steps were taken.

        The reward model learns first. Until it has seen enough responses the policy stays as it is.

        Raises:
            DivergedError: The loss is not finite; the weights are then those of the step before.
        """
        self.rewards.observe(_shown_ads(lists))
        self.rewards.fit()
        usable = [rewarded for rewarded in lists if len(rewarded.keys_N) > 1]
        if not self.rewards.ready or not usable:
            return 0
        n_steps = max(1, round(len(usable) / self.config.batch_lists))
        for part in np.array_split(np.arange(len(usable)), n_steps):
            self._step([usable[i] for i in part])
        return n_steps

    def values(self, rewarded: RewardedCandidates) -> FloatArray:
        """Return the rewards v of a list's candidates in micros per mille, as if each were shown in the first place.

        Of a list of another pipeline, which has no likelihoods, they are what it earned.
        """
        if not rewarded.has_ref:
            return rewarded.response_value_N
        return self.rewards.response_rate(rewarded.keys_N, rewarded.log_ref_N, 0) * rewarded.click_value_N

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that learning goes on from: tensors by name, and plain values."""
        kept = {"policy": self.policy.state_dict(), "approved": self._approved}
        tensors = {
            f"{what}.{name}": t.detach().cpu().contiguous() for what, named in kept.items() for name, t in named.items()
        }
        for name, moments in zip(self._names, self._optimizer.state_dict()["state"].values(), strict=False):
            tensors |= {f"adam.{key}.{name}": t.detach().cpu().contiguous() for key, t in moments.items()}
        tensors |= {f"rewards.{key}": torch.from_numpy(np.array(a)) for key, a in self.rewards.state().items()}
        return tensors, {"steps": self.steps, "totals": dict(self.totals)}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            KeyError: Something is missing.
            RuntimeError: The weights are of another shape.
        """
        self.policy.load_state_dict(_below("approved.", tensors))
        self.approve()
        self.policy.load_state_dict(_below("policy.", tensors))
        moments = {key: _below(f"adam.{key}.", tensors) for key in ("step", "exp_avg", "exp_avg_sq")}
        state = self._optimizer.state_dict()
        if moments["step"]:
            state["state"] = {
                number: {key: named[name].clone() for key, named in moments.items()}
                for number, name in enumerate(self._names)
            }
        self._optimizer.load_state_dict(state)
        self.rewards.restore({key: tensor.numpy() for key, tensor in _below("rewards.", tensors).items()})
        self.steps, self.totals = int(values["steps"]), dict(values["totals"])

    def _step(self, lists: Sequence[RewardedCandidates]) -> None:
        batch = collate_lists(lists, [self.values(rewarded) for rewarded in lists], self.policy)
        loss, metrics = list_loss(self.policy, batch, self.config.vsl, self.config.rspo, self.config.preference)
        rate = self.config.learning_rate * min(1.0, (self.steps + 1) / max(1, self.config.warmup_steps))
        if not torch.isfinite(loss):
            raise DivergedError(self.steps, loss.item(), rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=False)  # every weight keeps its moments, also one without a gradient
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.gradient_clip)
        self._optimizer.step()
        self.steps += 1
        for name, value in {"loss": loss.detach(), **metrics}.items():
            self.totals[name] = self.totals.get(name, 0.0) + float(value)


def collate_lists(lists: Sequence[RewardedCandidates], values: Sequence[FloatArray], policy: LazyAr) -> ShownLists:
    """Pad lists to the longest, on the policy's device.

    Args:
        lists: At least one.
        values: Rewards of each list's candidates.
        policy: Gives shapes and device.
    """
    longest = max(len(rewarded.keys_N) for rewarded in lists)

    def padded(rows: Sequence[NDArray[Any]], dtype: torch.dtype) -> Tensor:
        out = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
        for row, values_N in zip(out, rows, strict=True):
            row[: len(values_N)] = values_N
        return torch.from_numpy(out).to(policy.device, dtype)

    return ShownLists(
        inputs=collate_contexts([rewarded.history for rewarded in lists], policy.config).to(policy.device),
        sids_BNT=padded([rewarded.sids_NT for rewarded in lists], torch.int64),
        log_ref_BN=padded([rewarded.log_ref_N for rewarded in lists], torch.float32),
        has_ref_B=torch.tensor([rewarded.has_ref for rewarded in lists], device=policy.device),
        value_micros_BN=padded(values, torch.float32),
        response_micros_BN=padded([rewarded.response_value_N for rewarded in lists], torch.float32),
        mask_BN=padded([np.ones(len(rewarded.keys_N), bool) for rewarded in lists], torch.bool),
    )


def _shown_ads(lists: Sequence[RewardedCandidates]) -> ShownAds:
    """Return the shown ads of lists that come with likelihoods."""
    shown = [(rewarded, rewarded.places_N != NOT_SHOWN) for rewarded in lists if rewarded.has_ref]

    def column(of: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype), *of])

    return ShownAds(
        keys_M=column([rewarded.keys_N[mask] for rewarded, mask in shown], np.int64),
        log_prob_M=column([rewarded.log_ref_N[mask] for rewarded, mask in shown], np.float64),
        places_M=column([rewarded.places_N[mask] for rewarded, mask in shown], np.int64),
        responded_M=column([rewarded.responded_N[mask] for rewarded, mask in shown], np.bool_),
    )


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
