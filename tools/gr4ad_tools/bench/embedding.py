"""`gr4ad bench embedding`: what the co-occurrence head is worth, to the vectors and to the policy that writes the SIDs.

Both arms see the same split and the same seed; only the head differs. All is measured on events that neither the
codebook nor the policy has seen.

Shapes: M scored users, P of them whose last two ads differ, N of all seeds together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from gr4ad_core.learning.data_folder import DataFolderError
from gr4ad_core.learning.embedding import EncoderFolderError
from gr4ad_core.learning.held_out import target_positions
from gr4ad_core.learning.presets import PRESETS
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gr4ad_tools.bench.held_out_policy import (
    BEAM_WIDTHS,
    ad_table,
    encode_ads,
    give_sids,
    held_out_targets,
    read_split,
    train_policy,
)
from gr4ad_tools.bootstrap import UserSums, bootstrap_ratio
from gr4ad_tools.call_error import leave
from gr4ad_tools.codebook_report.quality import pair_recall
from gr4ad_tools.demo.state import OutputFolderError, RunState
from gr4ad_tools.figures import Figure
from gr4ad_tools.measure import show_summary, write_summary
from gr4ad_tools.process_guard import guarded_process

CONTENT, HEAD = "content", "head"
K = 10


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


def measure(setting: Setting, arm: str, seed: int) -> dict[str, dict[str, bool]]:
    """Fit one arm's vectors and, if asked for, train its policy; the body of a process of its own.

    Returns:
        Hits by user, as plain JSON. `cobought_recall`: whether the user's last ad is among the K nearest to the one
        before; `recall`: whether it is among the first K that the policy generates for the user.
    """
    torch.set_num_threads(setting.threads)
    items, split = read_split(setting.data, seed)
    vectors_ND = encode_ads(items, split.train, seed, head=arm == HEAD, encoder=setting.encoder)
    pairs_M2 = np.stack([split.interactions.items[events] for events in (split.validation_M, split.targets_M)], axis=1)
    two_ads_M = pairs_M2[:, 0] != pairs_M2[:, 1]
    near_P = pair_recall(vectors_ND, pairs_M2[two_ads_M], [K])[K]
    found = {"cobought_recall": _by_user(split.users_M[two_ads_M], near_P)}
    if not setting.policies:
        return found
    ads = ad_table(items, give_sids(items, vectors_ND, seed))
    trained = train_policy(split, ads, setting.preset, seed, setting.threads)
    targets = held_out_targets(split, ads)
    found["recall"] = _by_user(split.users_M, target_positions(trained.model, targets, BEAM_WIDTHS) < K)
    return found


def _by_user(users_M: NDArray[np.int64], hits_M: NDArray[np.bool_]) -> dict[str, bool]:
    return dict(zip(map(str, users_M.tolist()), hits_M.tolist(), strict=True))


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
                with guarded_process() as process:
                    state.done(f"{arm}-{seed}", process.submit(measure, setting, arm, seed).result())
                bar.update(task, completed=1)
    state.finish()
    return {(arm, seed): state.results[f"{arm}-{seed}"] for arm in (CONTENT, HEAD) for seed in range(seeds)}
