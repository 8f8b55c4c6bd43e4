"""What a policy is worth on samples it was not trained on: token losses, and recall of the constrained search.

Shapes: M samples, B samples of a batch, W beams, T SID levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr4ad_core.decoding.beam_search import beam_search
from gr4ad_core.decoding.constraints import TorchTrie
from gr4ad_core.learning.sampling import TrainingSet
from gr4ad_core.learning.vsl import VslConfig, token_loss
from gr4ad_core.model.lazy_ar import LazyAr
from gr4ad_core.sid.trie import LiveTrie

BATCH = 128  # Requests searched together: bounds the memory of their beams.
CUTS = (5, 10)


def first_hit(sids_BWT: Tensor, valid_BW: Tensor, target_BT: Tensor) -> NDArray[np.int64]:
    """Return the position (from 0) of each request's target among its candidates, W where it is not there."""
    hit_BW = (sids_BWT == target_BT[:, None]).all(-1) & valid_BW
    position_B = torch.where(hit_BW.any(1), hit_BW.to(torch.int8).argmax(1), hit_BW.shape[1])
    found: NDArray[np.int64] = position_B.cpu().numpy()
    return found


@torch.no_grad()
def target_positions(model: LazyAr, samples: TrainingSet, beam_widths: Sequence[int]) -> NDArray[np.int64]:
    """Return the position (from 0) of each sample's target among what the policy generates, W where it is not there.

    Args:
        model: In evaluation mode.
        samples: The search is constrained to its `ad_sids_AT`.
        beam_widths: Of the levels; the last one also of those after it.
    """
    trie = TorchTrie.from_view(LiveTrie.build(samples.ad_sids_AT, model.config.level_sizes).view, model.device)
    last = len(beam_widths) - 1
    widths = tuple(beam_widths[min(level, last)] for level in range(model.config.n_levels))
    positions = []
    for start in range(0, len(samples), BATCH):
        batch = samples.batch(np.arange(start, min(start + BATCH, len(samples))), model.config).to(model.device)
        found = beam_search(model, model.encode_context(batch.inputs), trie, widths)
        positions.append(first_hit(found.sids_BWT, found.valid_BW, batch.sids_BT))
    return np.concatenate(positions)


@torch.no_grad()
def held_out_metrics(model: LazyAr, held_out: TrainingSet, config: VslConfig) -> dict[str, float]:
    """Measure a policy on held-out samples.

    Args:
        model: Put into evaluation mode for the time of the call.
        held_out: Samples not trained on; the search is constrained to its `ad_sids_AT`.
        config: Gives the beam widths.

    Returns:
        `held_out_samples`, `held_out_sid_loss` (nats per SID), `held_out_ecpm_loss`, and `held_out_recall@k` and
        `held_out_ndcg@k` of the target among the first k candidates; only the count when there is no sample.
    """
    if not len(held_out):
        return {"held_out_samples": 0.0}
    was_training = model.training
    model.eval()
    position_M = target_positions(model, held_out, config.validation_beams)
    sid_loss, ecpm_loss = 0.0, 0.0
    for start in range(0, len(held_out), BATCH):
        samples = np.arange(start, min(start + BATCH, len(held_out)))
        batch = held_out.batch(samples, model.config).to(model.device)
        values = torch.from_numpy(held_out.value_micros_M[samples]).to(model.device)
        outputs = model.teacher_forced(batch.inputs, batch.sids_BT)
        sid_loss_B, ecpm_loss_B = token_loss(
            outputs.level_logits, outputs.ecpm_logits, batch.sids_BT, model.ecpm_bucket(values), 0.0
        )
        sid_loss += float(sid_loss_B.sum())
        ecpm_loss += float(ecpm_loss_B.sum())
    model.train(was_training)

    metrics = {
        "held_out_samples": float(len(held_out)),
        "held_out_sid_loss": sid_loss / len(held_out),
        "held_out_ecpm_loss": ecpm_loss / len(held_out),
    }
    for k in CUTS:
        metrics[f"held_out_recall@{k}"] = float((position_M < k).mean())
        metrics[f"held_out_ndcg@{k}"] = float(np.where(position_M < k, 1.0 / np.log2(position_M + 2.0), 0.0).mean())
    return metrics
