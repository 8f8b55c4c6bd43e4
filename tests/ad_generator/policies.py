"""Small policies with random weights, published to an artifact store."""

from __future__ import annotations

from pathlib import Path

import torch
from gr4ad.training.v1 import training_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.checkpoint import save_checkpoint
from gr4ad_core.model.lazy_ar import LazyAr, LazyArConfig
from gr4ad_runtime.artifacts import ArtifactStore

LEVEL_SIZES = (4, 5, 6)
CODEBOOK = "small"


def random_model(seed: int, level_sizes: tuple[int, ...] = LEVEL_SIZES) -> LazyAr:
    """Make a tiny model whose value buckets are worth different amounts."""
    config = LazyArConfig(
        level_sizes=level_sizes, d_model=16, n_heads=2, n_layers=3, n_lazy=2, d_ff=32, max_history=8, n_ecpm_buckets=4
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = LazyAr(config)
        torch.nn.init.normal_(model.ecpm_head.weight, std=0.5)
    model.set_ecpm_buckets(torch.tensor([1e3, 1e4, 1e5]), torch.tensor([5e2, 5e3, 5e4, 5e5]))
    return model.eval()


def publish(
    store_url: str,
    policy_id: str,
    seed: int,
    codebook_id: str = CODEBOOK,
    level_sizes: tuple[int, ...] = LEVEL_SIZES,
) -> training_pb2.Policy:
    """Publish a random policy as the trainer would, and return its announcement."""
    store = ArtifactStore(store_url)
    local = Path(store_url).parent / f"trained-{policy_id}"
    manifest = save_checkpoint(local, random_model(seed, level_sizes), policy_id, codebook_id, {}, {})
    uri = store.publish_folder(local, f"policies/{policy_id}")
    return training_pb2.Policy(
        policy=type_pb2.PolicyRef(policy_id=policy_id, codebook_id=codebook_id, sha256=manifest.sha256), uri=uri
    )
