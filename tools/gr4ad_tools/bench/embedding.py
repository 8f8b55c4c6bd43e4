"""`gr4ad bench embedding`: what the co-occurrence head is worth, to the vectors and to the policy that writes the SIDs.

Both arms see the same split and the same seed; only the head differs. Events of one user at one time have no order
that a live system knows, so each seed shuffles them before the split. All is measured on events that neither the
codebook nor the policy has seen.

Shapes: N events, M scored users, P of them whose last two ads differ.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from gr4ad_core.learning.data_folder import DataFolderError, Interactions, read_interactions, read_items
from gr4ad_core.learning.embedding import (
    EncoderFolderError,
    HuggingFaceEncoder,
    fit_head,
    tune_text_encoder,
)
from gr4ad_core.learning.held_out import target_positions
from gr4ad_core.learning.presets import PRESETS, training_preset
from gr4ad_core.learning.sampling import AdTable, TrainingSet
from gr4ad_core.learning.swing import strongest, swing
from gr4ad_core.learning.trainer import train_vsl
from gr4ad_core.sid.ad_content import render
from gr4ad_core.sid.codebook import CodebookConfig, default_level_sizes, fit_codebook
from gr4ad_core.sid.text_encoder import TextEncoder
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gr4ad_tools.bootstrap import UserSums, bootstrap_ratio
from gr4ad_tools.call_error import leave
from gr4ad_tools.codebook_fit import EMBEDDING_DIM, POSITIVES, content_of, signals_of
from gr4ad_tools.codebook_report.quality import pair_recall
from gr4ad_tools.demo.state import OutputFolderError, RunState
from gr4ad_tools.figures import Figure
from gr4ad_tools.leave_one_out import LeaveOneOut, leave_one_out
from gr4ad_tools.measure import show_summary, write_summary

CONTENT, HEAD = "content", "head"
K = 10
BEAM_WIDTHS = (32, 64, 128)  # as the generator's default


@dataclass(frozen=True)
class Setting:
    """What to measure on.

    Attributes:
        data: Data folder.
        encoder: Hugging Face folder of the content encoder; the text encoder if None.
        preset: Recipe of the policy.
        policies: Whether to train policies at all.
        threads: Threads of torch.
    """

    data: Path
    encoder: Path | None
    preset: str
    policies: bool
    threads: int


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


def measure(setting: Setting, arm: str, seed: int) -> dict[str, dict[str, bool]]:
    """Fit one arm's vectors and, if asked for, train its policy; the body of a process of its own.

    Returns:
        Hits by user, as plain JSON. `cobought_recall`: whether the user's last ad is among the K nearest to the one
        before; `recall`: whether it is among the first K that the policy generates for the user.
    """
    torch.set_num_threads(setting.threads)
    items = read_items(setting.data)
    split = leave_one_out(shuffle_ties(read_interactions(setting.data), seed))
    texts = [render(content_of(item)) for item in items]
    vectors_ND = _vectors(setting, arm, seed, texts, split)
    pairs_M2 = np.stack([split.interactions.items[events] for events in (split.validation_M, split.targets_M)], axis=1)
    two_ads_M = pairs_M2[:, 0] != pairs_M2[:, 1]
    near_P = pair_recall(vectors_ND, pairs_M2[two_ads_M], [K])[K]
    found = {"cobought_recall": _by_user(split.users_M[two_ads_M], near_P)}
    if not setting.policies:
        return found
    sizes = default_level_sizes(len(items))
    codebook = fit_codebook(vectors_ND, CodebookConfig(level_sizes=sizes, embedding_dim=vectors_ND.shape[1], seed=seed))
    ads = AdTable(
        ad_ids=[item.item_id for item in items],
        sids=codebook.assign(vectors_ND, [signals_of(item) for item in items], lambda prefix: set()),
        bid_micros=np.array([item.bid_micros for item in items]),
        conversion_types=[item.conversion_type for item in items],
    )
    model_config, recipe = training_preset(setting.preset, sizes)
    samples = TrainingSet.from_interactions(split.train, ads)
    trained = train_vsl(samples, model_config, recipe, seed, threads=setting.threads)
    everything = TrainingSet.from_interactions(split.interactions, ads)
    targets = everything.select(np.searchsorted(everything.context_end_M, split.targets_M))
    found["recall"] = _by_user(split.users_M, target_positions(trained.model, targets, BEAM_WIDTHS) < K)
    return found


def _by_user(users_M: NDArray[np.int64], hits_M: NDArray[np.bool_]) -> dict[str, bool]:
    return dict(zip(map(str, users_M.tolist()), hits_M.tolist(), strict=True))


def _vectors(setting: Setting, arm: str, seed: int, texts: list[str], split: LeaveOneOut) -> NDArray[np.float32]:
    positives = strongest(swing(split.train, seed), POSITIVES)
    if setting.encoder is not None:
        content_ND = HuggingFaceEncoder(setting.encoder).encode(texts)
        return fit_head(content_ND, positives, seed)(content_ND) if arm == HEAD else content_ND
    encoder = TextEncoder.fit(texts, EMBEDDING_DIM, seed)
    if arm == HEAD:
        encoder = tune_text_encoder(encoder, texts, positives, seed)
    return encoder.encode(texts)


def embedding_figures(found: dict[tuple[str, int], dict[str, dict[str, bool]]], seeds: int) -> dict[str, Figure]:
    """Return the figures of both arms over all seeds; the lift's interval is over users, paired.

    Args:
        found: What `measure` returned, by arm and seed.
        seeds: How many seeds.
    """
    figures_found = {}
    for name in ("cobought_recall", "recall"):
        if any(name not in hits for hits in found.values()):
            continue
        by_arm = {arm: [found[arm, seed][name] for seed in range(seeds)] for arm in (CONTENT, HEAD)}
        shares: dict[str, list[float]] = {}
        sums: dict[str, UserSums] = {}
        for arm, hits in by_arm.items():
            shares[arm] = [float(np.mean(list(of_seed.values()))) for of_seed in hits]
            n = sum(map(len, hits))
            figures_found[f"{name}@{K}_{arm}"] = Figure(
                float(np.mean(shares[arm])), "", n, min(shares[arm]), max(shares[arm])
            )
            users_N = np.array([user for of_seed in hits for user in of_seed])
            hits_N = np.array([hit for of_seed in hits for hit in of_seed.values()])
            sums[arm] = UserSums.of(users_N, hits_N, np.ones(n))
        lift = bootstrap_ratio(sums[HEAD], sums[CONTENT], paired=True, seed=0)
        lifts = [100.0 * (head / content - 1.0) for head, content in zip(shares[HEAD], shares[CONTENT], strict=True)]
        users = len(sums[HEAD].users_U)
        figures_found[f"{name}@{K}_lift_pct"] = Figure(100.0 * lift.value, "%", seeds, min(lifts), max(lifts))
        figures_found[f"{name}@{K}_lift_ci_low"] = Figure(100.0 * lift.low, "%", users)
        figures_found[f"{name}@{K}_lift_ci_high"] = Figure(100.0 * lift.high, "%", users)
    return figures_found


def embedding_command(
    data: Annotated[Path, typer.Option("--data", exists=True, file_okay=False, help="Data folder.")],
    encoder: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Hugging Face folder of an encoder, not the built-in one."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, …, each with its shuffle, head and policy.")] = 3,
    preset: Annotated[str, typer.Option(help=f"Recipe of the policies, of {', '.join(PRESETS)}.")] = "default",
    policies: Annotated[bool, typer.Option(help="Train policies, too: minutes each.")] = True,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on there.")] = Path(
        "out/bench-embedding"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Compare content vectors with those of the co-occurrence head, and the policies that learn their SIDs."""
    if preset not in PRESETS:
        leave(f"--preset: {preset}: choose of {', '.join(PRESETS)}")
    setting = Setting(data.resolve(), encoder, preset, policies, threads)
    try:
        found = _measured(setting, seeds, out)
    except (ValueError, DataFolderError, EncoderFolderError, OutputFolderError) as error:
        leave(str(error))
    except KeyboardInterrupt:
        leave(f"interrupted: the same command goes on where it was; what there is lies in {out}", code=130)
    figures_found = embedding_figures(found, seeds)
    document = write_summary(figures_found, 0, out)
    show_summary(document, figures_found, out, as_json)


def _measured(setting: Setting, seeds: int, out: Path) -> dict[tuple[str, int], dict[str, dict[str, bool]]]:
    """Return the hits of each arm and seed, measured one after the other, each in a process of its own."""
    parameters: dict[str, Any] = {**{key: str(value) for key, value in vars(setting).items()}, "seeds": seeds}
    state = RunState.open(out, parameters)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for seed in range(seeds):
            for arm in (CONTENT, HEAD):
                if f"{arm}-{seed}" in state.results:
                    continue
                task = bar.add_task(f"{arm}, seed {seed}", total=1)
                with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
                    state.done(f"{arm}-{seed}", process.submit(measure, setting, arm, seed).result())
                bar.update(task, completed=1)
    state.finish()
    return {(arm, seed): state.results[f"{arm}-{seed}"] for arm in (CONTENT, HEAD) for seed in range(seeds)}
