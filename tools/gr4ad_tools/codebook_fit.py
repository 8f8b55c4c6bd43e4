"""From a data folder to a published codebook: encode, learn what is chosen together, fit the levels, publish.

What a step has made is kept in a work folder until the codebook is published, so that an interrupted fit goes on there.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from gr4ad_core.learning.data_folder import INTERACTIONS_FILE, Item, hold_out, read_interactions, read_items
from gr4ad_core.learning.embedding import HuggingFaceEncoder, fit_head, tune_text_encoder
from gr4ad_core.learning.swing import strongest, swing
from gr4ad_core.sid.ad_content import AdContent, render
from gr4ad_core.sid.business_code import BusinessSignals
from gr4ad_core.sid.codebook import Codebook, CodebookConfig, default_level_sizes, fit_codebook, save_codebook
from gr4ad_core.sid.cooccurrence_head import CooccurrenceHead
from gr4ad_core.sid.text_encoder import TextEncoder
from gr4ad_runtime.artifacts import ArtifactStore
from numpy.typing import NDArray
from scipy import sparse

ARTIFACT_FOLDER = "codebooks"
EMBEDDING_DIM = 256
"""Length of the text encoder's vectors."""
POSITIVES = 20
"""Partners of an ad that the co-occurrence head learns from at most."""
CODEBOOK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # the contract's rule

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class FittedCodebook:
    """What was published.

    Attributes:
        codebook_id: Its name.
        ads: Ads that it was fitted to.
        pairs: Pairs of an ad and a partner that its vectors learned from; 0 where they say content alone.
    """

    codebook_id: str
    ads: int
    pairs: int


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit.

    Attributes:
        seed: Of every random choice.
        level_sizes: Codes of every level, the business level last; by the number of ads if None.
        business_signals: Signals in the high bits of the business code.
        encoder: Hugging Face folder of the content encoder; the text encoder, fitted to the ads, if None.
        content_only: Whether to leave out what users choose together.
        holdout_events: Events at the end of every user's sequence that the co-occurrence must not know.
    """

    seed: int = 0
    level_sizes: tuple[int, ...] | None = None
    business_signals: tuple[str, ...] = ("conversion_type",)
    encoder: Path | None = None
    content_only: bool = False
    holdout_events: int = 0


def fit_codebook_from_folder(
    data_dir: Path | str,
    artifact_store_url: str,
    codebook_id: str,
    options: FitOptions,
    work: Path | None = None,
    progress: OnProgress | None = None,
) -> FittedCodebook:
    """Fit an encoder and a codebook to the ads of a data folder and publish them.

    The same folder and options give the same bytes, so that a repeated call changes nothing.

    Args:
        data_dir: Folder with `items.jsonl[.gz]`; ads that users chose together come from its interactions, if any.
        artifact_store_url: Folder or fsspec URL; the codebook is published as `codebooks/<codebook_id>`.
        codebook_id: Letters, digits, dots, dashes and underscores.
        options: How to fit.
        work: Folder for finished steps, where an interrupted call of the same folder and options goes on; a folder
            that is gone afterwards if None.
        progress: Called with the name of the step under way and the share of the whole that is done.

    Raises:
        ValueError: The id, a size or a business signal is unusable.
        DataFolderError: The folder cannot be used.
        EncoderFolderError: The encoder's folder cannot be used.
        Gr4adError: The artifact store holds another codebook of this id, or cannot be written.
    """
    if not CODEBOOK_ID.fullmatch(codebook_id):
        remedy = "use 1 to 128 letters, digits, dots, dashes and underscores, a letter or digit first"
        raise ValueError(f"codebook_id: {codebook_id!r}: {remedy}")
    report = progress or (lambda step, share: None)
    report("read", 0.0)
    items = read_items(data_dir)
    with tempfile.TemporaryDirectory(prefix="gr4ad-codebook-") as scratch:
        steps = FinishedSteps.open(work or Path(scratch) / "work", Path(data_dir), options)
        codebook, pairs = _fit(Path(data_dir), items, codebook_id, options, steps, report)
        report("publish", 0.95)
        folder = Path(scratch) / codebook_id
        save_codebook(codebook, folder)
        ArtifactStore(artifact_store_url).publish_folder(folder, f"{ARTIFACT_FOLDER}/{codebook_id}")
        steps.remove()
    report("publish", 1.0)
    return FittedCodebook(codebook_id, len(items), pairs)


def _fit(
    data_dir: Path,
    items: Sequence[Item],
    codebook_id: str,
    options: FitOptions,
    steps: FinishedSteps,
    report: OnProgress,
) -> tuple[Codebook, int]:
    config = CodebookConfig(
        level_sizes=options.level_sizes or default_level_sizes(len(items), len(options.business_signals)),
        business_signals=options.business_signals,
        seed=options.seed,
    )
    texts = [render(content_of(item)) for item in items]
    report("encode", 0.05)
    encoder: TextEncoder | None = None
    if options.encoder is None:
        encoder = TextEncoder.from_arrays(
            steps.keep("encoder", lambda: TextEncoder.fit(texts, EMBEDDING_DIM, options.seed).arrays())
        )
    positives = None if options.content_only else positive_pairs(data_dir, options.holdout_events, options.seed)
    pairs = 0 if positives is None else positives.nnz
    head: CooccurrenceHead | None = None
    if encoder is not None:
        if positives is not None:
            report("tune", 0.2)
            encoder = TextEncoder.from_arrays(
                steps.keep(
                    "tuned-encoder",
                    lambda: tune_text_encoder(
                        encoder, texts, positives, options.seed, on_progress=_part(report, "tune", 0.2, 0.6)
                    ).arrays(),
                )
            )
        vectors_ND = encoder.encode(texts)
    else:
        assert options.encoder is not None
        vectors_ND = steps.keep("vectors", lambda: {"vectors": _encoded(options, texts, report)})["vectors"]
        if positives is not None:
            report("tune", 0.4)
            head = CooccurrenceHead.from_arrays(
                steps.keep(
                    "head",
                    lambda: fit_head(
                        vectors_ND, positives, options.seed, on_progress=_part(report, "tune", 0.4, 0.6)
                    ).arrays(),
                )
            )
    report("cluster", 0.6)
    codebook = fit_codebook(
        vectors_ND,
        replace(config, embedding_dim=vectors_ND.shape[1]),
        encoder,
        codebook_id,
        head,
        keep=lambda name, make: steps.keep(name, lambda: {"centroids": make()})["centroids"],
    )
    codebook.holdout_events = options.holdout_events if pairs else None
    return codebook, pairs


def _encoded(options: FitOptions, texts: Sequence[str], report: OnProgress) -> NDArray[np.float32]:
    assert options.encoder is not None
    return HuggingFaceEncoder(options.encoder).encode(texts, _part(report, "encode", 0.05, 0.4))


def _part(report: OnProgress, step: str, start: float, end: float) -> Callable[[float], None]:
    return lambda share: report(step, start + share * (end - start))


def positive_pairs(data_dir: Path, holdout_events: int, seed: int) -> sparse.csr_array | None:
    """Return each ad's strongest partners by Swing, in the order of the items; None where there is no pair.

    Args:
        data_dir: The folder, with or without interactions.
        holdout_events: Events at the end of every user's sequence to leave out.
        seed: Of what Swing draws.

    Raises:
        DataFolderError: The interactions cannot be used.
    """
    if not any((data_dir / name).exists() for name in (INTERACTIONS_FILE, f"{INTERACTIONS_FILE}.gz")):
        return None
    positives = strongest(swing(hold_out(read_interactions(data_dir), holdout_events), seed), POSITIVES)
    return positives if positives.nnz else None


def content_of(item: Item) -> AdContent:
    """Return what an encoder reads of an item."""
    return AdContent(item.title, item.brand, item.categories, item.description, item.advertiser_id, item.ad_type)


def signals_of(item: Item) -> BusinessSignals:
    """Return what a business code is made of."""
    return BusinessSignals(item.conversion_type, item.ad_type, item.advertiser_id, item.item_id)


class FinishedSteps:
    """What the finished steps of a fit made, in files."""

    def __init__(self, folder: Path) -> None:
        """Use a folder that `open` has prepared."""
        self._folder = folder

    @classmethod
    def open(cls, folder: Path, data_dir: Path, options: FitOptions) -> FinishedSteps:
        """Go on with what a fit of the same data and options has left; clear what another one has.

        Raises:
            ValueError: The folder holds something else.
        """
        digest = hashlib.sha256(json.dumps(vars(options), default=str, sort_keys=True).encode())
        for path in sorted(data_dir.glob("*.jsonl*")) + sorted(data_dir.glob("*.csv*")):
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        marker = folder / "inputs.sha256"
        if not marker.exists() or marker.read_text() != digest.hexdigest():
            if marker.exists():
                shutil.rmtree(folder)
            elif folder.exists() and any(folder.iterdir()):
                raise ValueError(f"work: {folder}: holds other files: name an empty or a new folder")
            folder.mkdir(parents=True, exist_ok=True)
            marker.write_text(digest.hexdigest())
        return cls(folder)

    def keep(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of a step: those kept, or else those that `make` returns, which are kept from now on."""
        path = self._folder / f"{name}.npz"
        if not path.exists():
            partial = self._folder / f"{name}.partial.npz"
            np.savez(partial, allow_pickle=False, **make())
            partial.replace(path)
        with np.load(path) as archive:
            return {key: archive[key] for key in archive.files}

    def remove(self) -> None:
        """Forget all steps."""
        shutil.rmtree(self._folder)
