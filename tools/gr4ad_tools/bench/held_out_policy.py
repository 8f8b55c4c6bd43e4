"""A policy that was trained on a data folder without its last events, and the users whose last ad it must find.

Events of one user at one time have no order that a live system knows, so a seed shuffles them before the split.

Shapes: N events or ads, D coordinates, T SID levels, M scored users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from gr4ad_core.learning.data_folder import Interactions, Item, read_interactions, read_items
from gr4ad_core.learning.embedding import HuggingFaceEncoder, fit_head, tune_text_encoder
from gr4ad_core.learning.presets import training_preset
from gr4ad_core.learning.sampling import AdTable, TrainingSet
from gr4ad_core.learning.swing import strongest, swing
from gr4ad_core.learning.trainer import Progress, TrainedPolicy, train_vsl
from gr4ad_core.sid.ad_content import render
from gr4ad_core.sid.codebook import CodebookConfig, default_level_sizes, fit_codebook
from gr4ad_core.sid.text_encoder import TextEncoder
from numpy.typing import NDArray

from gr4ad_tools.codebook_fit import EMBEDDING_DIM, POSITIVES, content_of, signals_of
from gr4ad_tools.leave_one_out import LeaveOneOut, leave_one_out

BEAM_WIDTHS: Final = (32, 64, 128)
"""Of the searches for held-out ads: the generator's default."""


def shuffle_ties(interactions: Interactions, seed: int) -> Interactions:
    """Shuffle each user's neighbouring events of one timestamp; events without a time keep their places."""
    users_N = np.repeat(np.arange(len(interactions.user_ids)), np.diff(interactions.offsets))
    times_N = interactions.timestamps
    tied = (users_N[1:] == users_N[:-1]) & (times_N[1:] == times_N[:-1])
    group_N = np.cumsum(np.concatenate([[True], ~tied]))
    order_N = np.lexsort((np.random.default_rng(seed).random(len(users_N)), group_N))
    return replace(
        interactions,
        items=interactions.items[order_N],
        behaviors=interactions.behaviors[order_N],
        timestamps=times_N[order_N],
    )


def read_split(data: Path, seed: int) -> tuple[list[Item], LeaveOneOut]:
    """Read a data folder, shuffle ties and hold out each user's last two chosen ads.

    Raises:
        DataFolderError: The folder cannot be used.
    """
    return read_items(data), leave_one_out(shuffle_ties(read_interactions(data), seed))


def encode_ads(
    items: Sequence[Item], train: Interactions, seed: int, *, head: bool, encoder: Path | None = None
) -> NDArray[np.float32]:
    """Return a vector of each ad, [N, D].

    Args:
        items: The ads.
        train: What users chose together in the training part.
        seed: Of every random choice.
        head: Whether vectors learn from that.
        encoder: Hugging Face folder of the content encoder; the text encoder if None.

    Raises:
        EncoderFolderError: The encoder's folder cannot be used.
    """
    texts = [render(content_of(item)) for item in items]
    positives = strongest(swing(train, seed), POSITIVES)
    if encoder is not None:
        content_ND = HuggingFaceEncoder(encoder).encode(texts)
        return fit_head(content_ND, positives, seed)(content_ND) if head else content_ND
    text_encoder = TextEncoder.fit(texts, EMBEDDING_DIM, seed)
    if head:
        text_encoder = tune_text_encoder(text_encoder, texts, positives, seed)
    return text_encoder.encode(texts)


def give_sids(items: Sequence[Item], vectors_ND: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """Fit a codebook of default sizes to vectors of ads, and return the SIDs it gives them, [N, T]."""
    dim = vectors_ND.shape[1]
    config = CodebookConfig(level_sizes=default_level_sizes(len(items)), embedding_dim=dim, seed=seed)
    codebook = fit_codebook(vectors_ND, config)
    return codebook.assign(vectors_ND, [signals_of(item) for item in items], lambda prefix: set())


def ad_table(items: Sequence[Item], sids_NT: NDArray[np.int64]) -> AdTable:
    """Return the ads as training sees them."""
    return AdTable(
        ad_ids=[item.item_id for item in items],
        sids=sids_NT,
        bid_micros=np.array([item.bid_micros for item in items]),
        conversion_types=[item.conversion_type for item in items],
    )


def train_policy(
    split: LeaveOneOut,
    ads: AdTable,
    preset: str,
    seed: int,
    threads: int,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> TrainedPolicy:
    """Train a policy by a preset on the training part alone.

    Raises:
        ValueError: There is no preset of this name, or nothing to train on.
    """
    model_config, recipe = training_preset(preset, default_level_sizes(len(ads.ad_ids)))
    samples = TrainingSet.from_interactions(split.train, ads)
    return train_vsl(samples, model_config, recipe, seed, on_progress, threads=threads)


def held_out_targets(split: LeaveOneOut, ads: AdTable) -> TrainingSet:
    """Return each scored user's last chosen ad as a sample behind all that came before it, M of them."""
    everything = TrainingSet.from_interactions(split.interactions, ads)
    return everything.select(np.searchsorted(everything.context_end_M, split.targets_M))
