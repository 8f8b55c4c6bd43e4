"""Ad embeddings that need torch (method.md §1.1): encoders from a Hugging Face folder, and co-occurrence heads.

A head is trained by InfoNCE on Swing pairs:

    L(i, j) = − log  exp(z_i·z_j / τ)  /  ( exp(z_i·z_j / τ) + Σ_{k ∉ P_i ∪ {i}} exp(z_i·z_k / τ) ),    j ∈ P_i

One term for each pair, where the method has one for each item with its partners summed inside the logarithm: there the
nearest partner alone bears the loss, here each has to come near, and none pushes another away. The sum over k runs over
the items of a mini-batch. What is trained is the last step before the normalisation, as the encoder
has it: of the text encoder its projection, which tells ads apart by their words; of any other vectors a small residual
network. Both come out as NumPy arrays, so that whoever assigns SIDs needs no torch.

Shapes: N items, D coordinates, F text features, B pairs of a mini-batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from gr4ad_core.sid.cooccurrence_head import CooccurrenceHead
from gr4ad_core.sid.text_encoder import TextEncoder

ENCODED_TOGETHER = 64
MAX_TOKENS = 256  # titles, categories and the first lines of a description
POOLINGS = ("pooling_mode_mean_tokens", "pooling_mode_cls_token", "pooling_mode_lasttoken")


class EncoderFolderError(Exception):
    """A folder holds no encoder that can be used; the text says what is missing and the remedy."""


class HuggingFaceEncoder:
    """A transformer from a local folder: texts to unit vectors, as `TextEncoder` does it. Nothing is downloaded.

    The vector is the mean over a text's tokens of the last layer, unless the folder says otherwise as sentence encoders
    do, in `1_Pooling/config.json`: the first token's or the last token's.
    """

    def __init__(self, folder: Path, device: str = "cpu", max_tokens: int = MAX_TOKENS) -> None:
        """Load a model with its tokeniser.

        Args:
            folder: As `save_pretrained` writes it.
            device: Torch device to encode on.
            max_tokens: Tokens of a text that are read; fewer where the model takes fewer.

        Raises:
            EncoderFolderError: The extra `huggingface` is not installed, or the folder holds no such model.
        """
        try:
            from transformers import AutoModel, AutoTokenizer  # heavy, and an optional extra
        except ImportError as error:
            raise EncoderFolderError(
                "encoder: transformers is not installed: install gr4ad with the extra 'huggingface'"
            ) from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).to(device).eval()
            self._pooling = _pooling_of(folder)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).splitlines()[0]
            remedy = "give a local folder with config.json, weights and tokeniser, as save_pretrained writes it"
            raise EncoderFolderError(f"encoder: {folder}: {first}: {remedy}") from error
        self._device = device
        longest = getattr(self._model.config, "max_position_embeddings", max_tokens)
        self._max_tokens = min(max_tokens, longest, self._tokenizer.model_max_length)

    @property
    def dim(self) -> int:
        """Length D of the vectors."""
        return int(self._model.config.hidden_size)

    @torch.inference_mode()
    def encode(
        self, texts: Sequence[str], on_progress: Callable[[float], object] = lambda share: None
    ) -> NDArray[np.float32]:
        """Return unit vectors [N, D].

        Args:
            texts: The texts.
            on_progress: Called with the share done.
        """
        # Texts of like length together, so that little is padded.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors_ND = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(order), ENCODED_TOGETHER):
            rows = order[start : start + ENCODED_TOGETHER]
            tokens = self._tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self._device)
            states_BSD = self._model(**tokens).last_hidden_state.float()
            pooled_BD = _pooled(states_BSD, tokens["attention_mask"], self._pooling)
            vectors_ND[rows] = F.normalize(pooled_BD, dim=-1).cpu().numpy()
            on_progress((start + len(rows)) / len(order))
        return vectors_ND


def _pooling_of(folder: Path) -> str:
    path = folder / "1_Pooling" / "config.json"
    modes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"pooling_mode_mean_tokens": True}
    chosen = [name for name in POOLINGS if modes.get(name)]
    if len(chosen) != 1:
        raise ValueError(f"{path.name}: {modes}: set one of {', '.join(POOLINGS)}")
    return chosen[0]


def _pooled(states_BSD: Tensor, mask_BS: Tensor, pooling: str) -> Tensor:
    """Pool the states of each text's own tokens, wherever the padding stands, to [B, D]."""
    rows_B = torch.arange(len(mask_BS), device=mask_BS.device)
    if pooling == "pooling_mode_mean_tokens":
        mask_BS1 = mask_BS[..., None].to(states_BSD.dtype)
        return (states_BSD * mask_BS1).sum(1) / mask_BS1.sum(1).clamp_min(1.0)
    first_B = mask_BS.argmax(1)
    if pooling == "pooling_mode_cls_token":
        return states_BSD[rows_B, first_B]
    return states_BSD[rows_B, first_B + mask_BS.sum(1) - 1]


@dataclass(frozen=True, kw_only=True)
class InfoNceConfig:
    """How a head is trained."""

    epochs: int
    """Passes over all pairs."""
    learning_rate: float
    """Of Adam, falling to zero in a line."""
    temperature: float
    """τ."""
    dropout: float
    """Share of the inputs left out at a step."""
    batch_size: int = 1024
    """Pairs B of a mini-batch; its other items are the negatives."""
    pairs_an_epoch: int = 1 << 20
    """Pairs drawn for an epoch where there are more."""


PROJECTION = InfoNceConfig(epochs=2, learning_rate=3e-3, temperature=0.15, dropout=0.3)
"""Recipe of `tune_text_encoder`."""
RESIDUAL = InfoNceConfig(epochs=10, learning_rate=2e-3, temperature=0.1, dropout=0.0)
"""Recipe of `fit_head`."""
HIDDEN = 512
"""Hidden units of the residual network."""

OnProgress = Callable[[float], object]


def info_nce(anchors_BD: Tensor, partners_BD: Tensor, excluded_BB: Tensor, temperature: float) -> Tensor:
    """Return the mean InfoNCE loss of a mini-batch of pairs, a scalar.

    Args:
        anchors_BD: Unit vectors z_i.
        partners_BD: Unit vectors z_j of their partners; those of the other pairs are the z_k.
        excluded_BB: Whether item k is in P_i or is item i itself; the pair's own place does not matter.
        temperature: τ.
    """
    own_BB = torch.eye(len(anchors_BD), dtype=torch.bool, device=anchors_BD.device)
    scores_BB = (anchors_BD @ partners_BD.T / temperature).masked_fill(excluded_BB & ~own_BB, -torch.inf)
    return F.cross_entropy(scores_BB, torch.arange(len(scores_BB), device=scores_BB.device))


def tune_text_encoder(
    encoder: TextEncoder,
    texts: Sequence[str],
    positives: sparse.csr_array,
    seed: int,
    config: InfoNceConfig = PROJECTION,
    on_progress: OnProgress = lambda share: None,
) -> TextEncoder:
    """Return the encoder with a projection under which items that users choose together lie together.

    The same texts, pairs and seed give the same encoder. Words keep what they say about each other, so a text of known
    words lands among its like whether or not anybody has chosen it yet.

    Args:
        encoder: Fitted; it stays as it is.
        texts: Texts of the N items.
        positives: P_i as the entries of row i, sparse [N, N].
        seed: Of the order and of what dropout leaves out.
        config: The recipe.
        on_progress: Called with the share done.

    Raises:
        ValueError: There is no pair, or not one row for each text.
    """
    _check(positives, len(texts))
    weights_NF = encoder.weights(texts)
    projection = torch.nn.Parameter(torch.from_numpy(encoder.projection.copy()))

    def embed(items_B: NDArray[np.int64], dropout: float) -> Tensor:
        rows = weights_NF[items_B]
        weights = F.dropout(torch.from_numpy(rows.data), dropout)
        offsets, features = (torch.from_numpy(a.astype(np.int64)) for a in (rows.indptr, rows.indices))
        bags_BD = F.embedding_bag(
            features, projection, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
        )
        return F.normalize(bags_BD, dim=-1)

    _train(embed, [projection], positives, seed, config, on_progress)
    return encoder.with_projection(projection.detach().numpy())


def fit_head(
    vectors: NDArray[np.float32],
    positives: sparse.csr_array,
    seed: int,
    config: InfoNceConfig = RESIDUAL,
    hidden: int = HIDDEN,
    on_progress: OnProgress = lambda share: None,
) -> CooccurrenceHead:
    """Train a head on content vectors [N, D] of any origin; the same vectors, pairs and seed give the same head.

    Args:
        vectors: Content vectors.
        positives: P_i as the entries of row i, sparse [N, N].
        seed: Of the first weights, the order and what dropout leaves out.
        config: The recipe.
        hidden: Hidden units H.
        on_progress: Called with the share done.

    Raises:
        ValueError: There is no pair, or not one row for each vector.
    """
    _check(positives, len(vectors))
    unit_ND = F.normalize(torch.from_numpy(np.asarray(vectors, dtype=np.float32)), dim=-1)
    dim = unit_ND.shape[1]
    # Coordinates of a unit vector are of size D^(−1/2).
    w1 = torch.nn.Parameter(torch.randn(dim, hidden, generator=torch.Generator().manual_seed(seed)))
    b1, w2, b2 = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((hidden,), (hidden, dim), (dim,)))

    def embed(items_B: NDArray[np.int64], dropout: float) -> Tensor:
        unit_BD = unit_ND[torch.from_numpy(items_B)]
        hidden_BH = F.relu(F.dropout(unit_BD, dropout) @ w1 + b1)
        return F.normalize(unit_BD + F.dropout(hidden_BH, dropout) @ w2 + b2, dim=-1)

    _train(embed, [w1, b1, w2, b2], positives, seed, config, on_progress)
    return CooccurrenceHead(*(parameter.detach().numpy() for parameter in (w1, b1, w2, b2)))


def _check(positives: sparse.csr_array, n_items: int) -> None:
    if positives.shape != (n_items, n_items):
        raise ValueError(f"positives: shape {positives.shape}: give one row and column for each of {n_items} items")
    if not positives.nnz:
        raise ValueError("positives: no pair: give items that users chose together, or leave the head out")


def _train(
    embed: Callable[[NDArray[np.int64], float], Tensor],
    parameters: Sequence[torch.nn.Parameter],
    positives: sparse.csr_array,
    seed: int,
    config: InfoNceConfig,
    on_progress: OnProgress,
) -> None:
    rng = np.random.default_rng(seed)
    anchor_M = np.repeat(np.arange(positives.shape[0]), np.diff(positives.indptr))
    partner_M = positives.indices.astype(np.int64)
    optimiser = torch.optim.Adam(parameters, lr=config.learning_rate)
    pairs_an_epoch = min(len(anchor_M), config.pairs_an_epoch)
    steps_an_epoch = -(-pairs_an_epoch // config.batch_size)
    total = config.epochs * steps_an_epoch
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 1.0 / total, total_iters=total)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(config.epochs):
            order = rng.permutation(len(anchor_M))[:pairs_an_epoch]
            for step in range(steps_an_epoch):
                pairs = order[step * config.batch_size : (step + 1) * config.batch_size]
                anchors, partners = anchor_M[pairs], partner_M[pairs]
                excluded_BB = (positives[anchors][:, partners].toarray() > 0) | (anchors[:, None] == partners)
                z_BD, z_partner_BD = embed(anchors, config.dropout), embed(partners, config.dropout)
                optimiser.zero_grad()
                info_nce(z_BD, z_partner_BD, torch.from_numpy(excluded_BB), config.temperature).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                on_progress((epoch * steps_an_epoch + step + 1) / total)
