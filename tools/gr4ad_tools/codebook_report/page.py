"""`gr4ad codebook report`: a page that shows what a codebook makes of a data folder."""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from gr4ad_core.learning.data_folder import DataFolderError, Item, read_interactions, read_items
from gr4ad_core.learning.embedding import EncoderFolderError, HuggingFaceEncoder
from gr4ad_core.metrics.sid_quality import sid_quality
from gr4ad_core.sid.ad_content import render
from gr4ad_core.sid.codebook import Codebook, CodebookFileError, load_codebook
from gr4ad_core.sid.text_encoder import TextEncoder
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.errors import Gr4adError
from numpy.typing import NDArray
from rich.console import Console

from gr4ad_tools import figures
from gr4ad_tools.call_error import leave
from gr4ad_tools.codebook_fit import ARTIFACT_FOLDER, content_of, signals_of
from gr4ad_tools.codebook_report import quality
from gr4ad_tools.figures import Figure
from gr4ad_tools.leave_one_out import leave_one_out
from gr4ad_tools.report_page import plots, write_page

KS = (1, 5, 10)
HELD_OUT = 2
"""Last events of every user that a pair is made of."""
SHOWN_ADS = 6
NAMED_OTHERS = 5
NAMED_KINDS = 7  # categories told apart on the map
TILES = {
    "ads": "ads",
    "cpr": "ads per SID",
    "col": "colliding ads",
    "spilled": "ads away from their nearest prefix",
    "cobought_recall@10_content": "held-out co-bought ad is among the ten nearest, by content alone",
    "cobought_recall@10_head": "the same, with what users choose together",
}


def report_command(
    data_dir: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Data folder.")],
    artifacts: Annotated[
        str, typer.Option(envvar="GR4AD_ARTIFACT_STORE", help="Artifact store: a folder or fsspec URL.")
    ] = "./out/artifacts",
    codebook_id: Annotated[str, typer.Option("--id", help="The codebook.")] = "codebook",
    seed: Annotated[int, typer.Option(min=0, help="Of the ads drawn to be shown.")] = 0,
    encoder: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Hugging Face folder that the codebook was fitted with, if any."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of summary.json and report.html.")] = Path("out/codebook-report"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Show a codebook's quality on a data folder: figures, balance, what levels leave over, neighbours by title."""
    try:
        with tempfile.TemporaryDirectory(prefix="gr4ad-codebook-") as scratch:
            name = f"{ARTIFACT_FOLDER}/{codebook_id}"
            codebook = load_codebook(ArtifactStore(artifacts).fetch_folder(name, Path(scratch) / "codebook"))
        items = read_items(data_dir)
        ads = [content_of(item) for item in items]
        texts = [render(ad) for ad in ads]
        content_ND = codebook.encode_ads(ads) if encoder is None else HuggingFaceEncoder(encoder).encode(texts)
        sids_NT = first_sids(codebook, items, content_ND)
        pairs_M2 = held_out_pairs(data_dir, items)
    except (ValueError, DataFolderError, EncoderFolderError, CodebookFileError, Gr4adError) as error:
        leave(str(error))
    found = codebook_figures(codebook, content_ND, sids_NT)
    found |= recall_figures(codebook, texts, content_ND, pairs_M2, seed)
    document = figures.document(found, " ".join(["gr4ad", *sys.argv[1:]]), seed, codebook_id=codebook_id)
    out.mkdir(parents=True, exist_ok=True)
    figures.write_json(out / "summary.json", document)
    write_page(
        out / "report.html",
        "gr4ad_tools.codebook_report",
        "codebook_report.html.j2",
        document,
        title=f"Codebook {codebook_id}",
        subtitle=f"{data_dir.resolve().name} · levels {', '.join(map(str, codebook.level_sizes))}, the last for "
        f"business codes by {' and '.join(codebook.business.signals)} · vectors of {codebook.embedding_dim} numbers",
        tiles=TILES,
        sections=_sections(codebook, items, content_ND, sids_NT),
        neighbours=_neighbours(items, sids_NT, seed),
    )
    if as_json:
        print(json.dumps(document, indent=2))
    if codebook.holdout_events is not None and codebook.holdout_events < HELD_OUT:
        remedy = f"fit it with --holdout {HELD_OUT} to see their recall"
        Console(stderr=True).print(f"the codebook has learned from the held-out pairs: {remedy}", soft_wrap=True)
    Console(stderr=True).print(f"summary  {out / 'summary.json'}\nreport   {out / 'report.html'}", soft_wrap=True)


def first_sids(codebook: Codebook, items: Sequence[Item], content_ND: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the SIDs [N, T] that the ads get when they are the first under the codebook, in their order."""
    return codebook.assign(content_ND, [signals_of(item) for item in items], lambda prefix: set())


def held_out_pairs(data_dir: Path, items: Sequence[Item]) -> NDArray[np.int64]:
    """Return the last two chosen ads of every user, [M, 2]: no part of what codebooks or policies are trained on."""
    split = leave_one_out(read_interactions(data_dir))
    number_of = {item.item_id: number for number, item in enumerate(items)}
    number_I = np.array([number_of[item_id] for item_id in split.interactions.item_ids], dtype=np.int64)
    events = (split.validation_M, split.targets_M)
    pairs_M2: NDArray[np.int64] = np.stack([number_I[split.interactions.items[chosen]] for chosen in events], axis=1)
    return np.asarray(pairs_M2[pairs_M2[:, 0] != pairs_M2[:, 1]])


def codebook_figures(
    codebook: Codebook, content_ND: NDArray[np.float32], sids_NT: NDArray[np.int64]
) -> dict[str, Figure]:
    """Return how a codebook tells the ads of a catalogue apart, and what it leaves over."""
    n = len(sids_NT)
    told_apart = sid_quality(sids_NT, codebook.level_sizes)
    spilled = int((sids_NT[:, :-1] != codebook.quantise(content_ND)).any(axis=1).sum())
    found = {
        "ads": Figure(n, "ads"),
        "cpr": Figure(told_apart.cpr, "ads per SID", n),
        "col": Figure(told_apart.col, "share of ads", n),
        "util": Figure(told_apart.util, "share of SIDs", n),
        "spilled": Figure(spilled, "ads", n),
    }
    for level, share in enumerate(quality.largest_shares(sids_NT, codebook.level_sizes), start=1):
        found[f"fullest_code_level_{level}"] = Figure(share, "times an even share", n)
    for level, left in enumerate(quality.reconstruction_errors(codebook, content_ND), start=1):
        found[f"reconstruction_error_level_{level}"] = Figure(left, "share of squared length", n)
    return found


def recall_figures(
    codebook: Codebook,
    texts: Sequence[str],
    content_ND: NDArray[np.float32],
    pairs_M2: NDArray[np.int64],
    seed: int,
) -> dict[str, Figure]:
    """Return the recall of held-out pairs by content alone, and by what was learned from users where that is fair.

    Args:
        codebook: The codebook.
        texts: The ads as encoders read them.
        content_ND: Their vectors before the codebook's head.
        pairs_M2: Pairs of ads.
        seed: Of the text encoder that content alone is read by where the codebook's own is tuned.
    """
    if codebook.holdout_events is None:
        return cobought_figures(content_ND, pairs_M2, "content")
    untuned_ND = content_ND
    if codebook.head is None:
        untuned_ND = TextEncoder.fit(texts, codebook.embedding_dim, seed).encode(texts)
    found = cobought_figures(untuned_ND, pairs_M2, "content")
    if codebook.holdout_events >= HELD_OUT:
        found |= cobought_figures(codebook.ad_vectors(content_ND), pairs_M2, "head")
    return found


def cobought_figures(vectors_ND: NDArray[np.float32], pairs_M2: NDArray[np.int64], kind: str) -> dict[str, Figure]:
    """Return how often the second ad of a held-out pair is among the nearest to the first, for vectors of a kind."""
    hits = quality.pair_recall(vectors_ND, pairs_M2, KS)
    n = len(pairs_M2)
    return {
        f"cobought_recall@{k}_{kind}": Figure(float(hit_M.mean()) if n else float("nan"), "", n)
        for k, hit_M in hits.items()
    }


def _sections(
    codebook: Codebook, items: Sequence[Item], content_ND: NDArray[np.float32], sids_NT: NDArray[np.int64]
) -> list[dict[str, Any]]:
    errors = quality.reconstruction_errors(codebook, content_ND)
    ads_V = np.bincount(sids_NT[:, 0], minlength=codebook.level_sizes[0])
    kind_of_code, kinds = _main_kinds(items, sids_NT[:, 0], codebook.level_sizes[0])
    return [
        {
            "title": "Levels",
            "text": "Each semantic level quantises what the one before left over; the last level is the business code.",
            "drawings": [
                {
                    "svg": plots.code_balance(sids_NT, codebook.level_sizes),
                    "caption": "Balance of each level's codes; 1 is an even spread.",
                },
                {
                    "svg": plots.bars({f"after level {n}": error for n, error in enumerate(errors, start=1)}, "{:.3f}"),
                    "caption": "Share of the vectors' squared length that is left over.",
                },
            ],
        },
        {
            "title": "First codes",
            "text": "The centroids of the first level in the plane of their largest variances. A point's area is the "
            "number of its ads, its colour the category that most of them are in.",
            "drawings": [
                {
                    "svg": plots.code_map(quality.principal_plane(codebook.levels[0]), ads_V, kind_of_code, kinds),
                    "caption": "Map of the first level's codes.",
                }
            ],
        },
    ]


def _main_kinds(
    items: Sequence[Item], first_codes_N: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the commonest category of each first code, as a number, and the names; the last one is all others."""
    depth = 1 if len({item.categories[0] for item in items if item.categories}) <= 1 else 0
    kind_N = [item.categories[depth] if len(item.categories) > depth else "none" for item in items]
    names = [name for name, _ in Counter(kind_N).most_common(NAMED_KINDS)]
    by_code: dict[int, Counter[str]] = {}
    for code, kind in zip(first_codes_N.tolist(), kind_N, strict=True):
        by_code.setdefault(code, Counter())[kind] += 1
    kind_V = np.full(size, len(names), dtype=np.int64)
    for code, counts in by_code.items():
        kind = counts.most_common(1)[0][0]
        kind_V[code] = names.index(kind) if kind in names else len(names)
    return kind_V, [*names, "others"]


def _neighbours(items: Sequence[Item], sids_NT: NDArray[np.int64], seed: int) -> list[dict[str, Any]]:
    drawn = sorted(random.Random(seed).sample(range(len(items)), min(SHOWN_ADS, len(items))))
    titles = [item.title or item.item_id for item in items]
    return [
        {
            "title": titles[neighbours.ad],
            "sid": "-".join(map(str, sids_NT[neighbours.ad])),
            "sharing": [
                {
                    "codes": "-".join(map(str, sids_NT[neighbours.ad, :length])),
                    "count": count,
                    "titles": [titles[other] for other in others],
                }
                for length, (count, others) in neighbours.sharing.items()
            ],
        }
        for neighbours in quality.prefix_neighbours(sids_NT, drawn, NAMED_OTHERS)
    ]
