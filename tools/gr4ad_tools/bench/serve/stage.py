"""The running services of a benchmark: generators of the same policy and catalogue that differ in their settings.

The neighbours are the real ones: a SID assigner that holds the ads, a trainer that announces the policy, a reward
logger that takes every served list, a PostgreSQL below them. The policy's weights are random, spread as
training spreads them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.training.v1 import training_pb2_grpc
from gr4ad_core.learning.checkpoint import save_checkpoint
from gr4ad_core.learning.data_folder import ITEMS_FILE, Item, read_items
from gr4ad_core.learning.presets import PRESETS, training_preset
from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.lazy_ar import LazyAr
from gr4ad_core.model.presets import paper_preset
from gr4ad_core.sid.codebook import default_level_sizes
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.db import Database
from rspo_trainer.models import SCHEMA
from rspo_trainer.policy_maker import ARTIFACT_FOLDER
from rspo_trainer.policy_store import NewPolicy, add_policy, make_current

from gr4ad_tools.bench.decode.workload import LOGIT_SPREAD, engine_shape, random_policy
from gr4ad_tools.bench.ingest import CODEBOOK_ID, FITTED, campaigns
from gr4ad_tools.codebook import activate_codebook
from gr4ad_tools.codebook_fit import FitOptions, fit_codebook_from_folder
from gr4ad_tools.ingest import CALL_TIMEOUT_S, MAX_BATCH, batches, to_ad
from gr4ad_tools.simulate import Market
from gr4ad_tools.suite_processes import PROCESSES
from gr4ad_tools.up import Suite

GENERATOR: Final = "ad_generator"
FIXED_WIDTHS: Final = {"GR4AD_BEAM_SCALE_MIN": "1", "GR4AD_BEAM_SCALE_MAX": "1"}
CHANNEL: Final = "stable"
POLICY_IDS: Final = ("bench-a", "bench-b")
"""Two policies of the same weights: a change from one to the other changes no answer."""
ENGINE: Final = "engine"
"""The shape that `gr4ad bench decode` measures."""
PAPER: Final = "paper"
SHAPES: Final = (*PRESETS, ENGINE, PAPER)
SCENARIO = "steady"
ACTIVE: Final = "active"
POLL_S: Final = 0.1
READY_S: Final = 120.0


@dataclass(frozen=True)
class Shape:
    """What is served.

    Attributes:
        preset: Shape of the policy, one of `SHAPES`.
        ads: Live ads.
        level_sizes: Codes of each of the three SID levels; empty to choose them by the number of ads.
        widths: Beams at each of them.
        device: Torch device of the policies.
        compute_type: What layers compute in.
        threads: Processor threads of one model call.
        seed: Of the ads and the policy's weights.
    """

    preset: str
    ads: int
    level_sizes: tuple[int, ...]
    widths: tuple[int, int, int]
    device: str
    compute_type: str
    threads: int
    seed: int

    @property
    def config(self) -> LazyArConfig:
        """The policy's shape."""
        sizes = self.level_sizes or default_level_sizes(self.ads)
        if self.preset in PRESETS:
            return training_preset(self.preset, sizes)[0]
        return {ENGINE: engine_shape, PAPER: paper_preset}[self.preset](sizes)


@dataclass(frozen=True)
class Stage:
    """What is running.

    Attributes:
        suite: The processes.
        market: What the ads are taken from, its log made.
        market_folder: What everybody knows of it.
        sids: Stub of the SID assigner.
        training: Stub of the trainer.
        ad_ids: The live ads.
        spare: Further ads, not created yet, without end.
        config: The policy's shape.
    """

    suite: Suite
    market: Market
    market_folder: Path
    sids: sid_pb2_grpc.SidServiceAsyncStub
    training: training_pb2_grpc.TrainingServiceAsyncStub
    ad_ids: tuple[str, ...]
    spare: Iterator[sid_pb2.Ad]
    config: LazyArConfig

    def log(self, name: str) -> Path:
        """Return the file of a process's output."""
        return self.suite.processes[name].spec.log

    def resident_mb(self, name: str) -> float:
        """Return the resident memory of a process and those below it, a generator's policies among them, in MiB."""
        pid = self.suite.processes[name].pid
        return 0.0 if pid is None else sum(map(_resident_mb, _with_descendants(pid)))


@asynccontextmanager
async def running(
    folder: Path, shape: Shape, generators: Mapping[str, Mapping[str, str]], tell: Callable[[str], None]
) -> AsyncIterator[Stage]:
    """Start the services in an empty folder, with ads and a policy, and wait until all generators serve them.

    Args:
        folder: Of the database, the artifacts and the logs.
        shape: What to serve.
        generators: Environment variables that set each generator apart, by its name; without them none keeps answers.
        tell: Called with what is under way.
    """
    tell("fit a codebook")
    market = Market(SCENARIO, shape.seed)
    market.write_folder(folder / "market")
    originals = [replace(item, state=ACTIVE) for item in read_items(folder / "market")]
    items = campaigns(originals, shape.ads)
    settings = {
        "GR4AD_LOG_LEVEL": "INFO",  # a line per refused call, with its duration
        "GR4AD_RESULT_CACHE_SECONDS": "0",
        "GR4AD_BEAM_WIDTHS": "-".join(map(str, shape.widths)),
        "GR4AD_DEVICE": shape.device,
        "GR4AD_COMPUTE_TYPE": shape.compute_type,
        "GR4AD_TORCH_THREADS": str(shape.threads),
        "GR4AD_REST_PORT": "0",
    }
    services = {name: PROCESSES[name].command() for name in ("rspo_trainer", "reward_logger", "sid_assigner")}
    async with Suite(
        folder / "suite",
        commands={**{name: PROCESSES[GENERATOR].command() for name in generators}, **services},
        env={"GR4AD_LOG_LEVEL": "ERROR"},
        service_env={name: {**settings, **own} for name, own in generators.items()},
    ) as suite:
        await asyncio.to_thread(
            _fit, folder / "ads", items[: max(FITTED, 2 * shape.config.level_sizes[0])], suite, shape
        )
        for name in services:
            await suite.wait_ready(name)
        await activate_codebook(suite.addresses["sid_assigner"], CODEBOOK_ID)
        async with (
            open_channel(suite.addresses["sid_assigner"]) as channel,
            open_channel(suite.addresses["rspo_trainer"]) as training,
        ):
            sids = sid_pb2_grpc.SidServiceStub(channel)
            tell(f"create {shape.ads} ads")
            for request in batches(items, MAX_BATCH):
                await sids.BatchCreateAdSids(request, timeout=CALL_TIMEOUT_S)
            tell("publish policies")
            model = policy_of(shape)
            for policy_id in reversed(POLICY_IDS):
                await _publish(suite, folder / policy_id, model, policy_id)
            for name in generators:
                await suite.wait_ready(name)
                await _serves(suite.addresses[name], shape.ads)
            spare = map(to_ad, _further(originals, shape.ads))
            ad_ids = tuple(item.item_id for item in items)
            trainer = training_pb2_grpc.TrainingServiceStub(training)
            yield Stage(suite, market, folder / "market", sids, trainer, ad_ids, spare, shape.config)


def parse_widths(widths: str) -> tuple[int, int, int]:
    """Return widths given such as 32-64-128.

    Raises:
        ValueError: They are not three positive numbers.
    """
    first, second, third = map(int, widths.split("-"))
    if min(first, second, third) < 1:
        raise ValueError(widths)
    return first, second, third


def policy_of(shape: Shape) -> LazyAr:
    """Return a policy with random weights whose ads differ in likelihood and in expected eCPM."""
    model = random_policy(shape.config, shape.seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(shape.seed)
        model.ecpm_head.weight.normal_(std=LOGIT_SPREAD * model.config.d_model**-0.5)
    return model


def _fit(folder: Path, items: list[Item], suite: Suite, shape: Shape) -> None:
    folder.mkdir()
    lines = "".join(json.dumps(asdict(item)) + "\n" for item in items)
    (folder / ITEMS_FILE).write_text(lines, encoding="utf-8")
    options = FitOptions(seed=shape.seed, level_sizes=shape.config.level_sizes, content_only=True)
    fit_codebook_from_folder(folder, suite.artifact_store, CODEBOOK_ID, options)


def _further(originals: list[Item], created: int) -> Iterator[Item]:
    """Yield the ads that would have come next."""
    for number in itertools.count(created):
        item = originals[number % len(originals)]
        yield replace(item, item_id=f"{item.item_id}-late-{number}", title=f"{item.title} {number}")


async def _publish(suite: Suite, folder: Path, model: LazyAr, policy_id: str) -> None:
    """Publish a policy and make it current, as the trainer does at the end of a run."""
    extra: dict[str, Any] = {"preset": "", "source": "gr4ad bench"}
    manifest = await asyncio.to_thread(save_checkpoint, folder, model, policy_id, CODEBOOK_ID, {}, extra)
    store = ArtifactStore(suite.artifact_store)
    uri = await asyncio.to_thread(store.publish_folder, folder, f"{ARTIFACT_FOLDER}/{policy_id}")
    database = Database(suite.database_url, SCHEMA)
    try:
        async with database.session() as session:
            await add_policy(session, NewPolicy(policy_id, CODEBOOK_ID, manifest.sha256, uri, {}))
            await make_current(session, policy_id, CHANNEL, "")
    finally:
        await database.close()


async def _serves(address: str, ads: int) -> None:
    """Wait until a generator's index holds all ads."""
    async with open_channel(address) as channel, asyncio.timeout(READY_S):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = generation_pb2.GetEngineStatusRequest()
        while True:
            if (await stub.GetEngineStatus(request, timeout=CALL_TIMEOUT_S)).live_ads == ads:
                return
            await asyncio.sleep(POLL_S)


def _with_descendants(pid: int) -> list[int]:
    try:
        children = [
            int(child)
            for task in os.listdir(f"/proc/{pid}/task")
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except FileNotFoundError:  # it has just ended
        return []
    return [pid, *(each for child in children for each in _with_descendants(child))]


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
