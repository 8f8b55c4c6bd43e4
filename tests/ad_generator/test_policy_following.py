"""Which policy serves: swaps under traffic, refusals, roll-backs, and a change of the codebook."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import torch
from ad_generator.policy_loader import KEPT_POLICIES, PolicyLoader
from gr4ad.generation.v1 import generation_pb2
from gr4ad.training.v1 import training_pb2
from gr4ad_core.model.compute_type import in_hardware
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.errors import UnavailableError
from structlog.testing import capture_logs

from tests.ad_generator.neighbours import PAUSED, Catalogue, eventually
from tests.ad_generator.policies import CODEBOOK, publish
from tests.ad_generator.suite import ALL_SIDS, Neighbours, Suite, run_generator, run_ready_generator


async def test_swaps_under_traffic_fail_no_request(suite: Suite) -> None:
    neighbours = suite.neighbours
    policies = [publish(neighbours.store_url, f"policy-{seed}", seed) for seed in range(2, 5)]
    answers: list[str] = []
    stop = asyncio.Event()

    async def user(number: int) -> None:
        while not stop.is_set():
            answer = await suite.ask([f"ad-{number % 4}-0-0"])
            assert len(answer.candidates) == 5
            answers.append(answer.policy.policy_id)

    users = [asyncio.create_task(user(number)) for number in range(8)]
    for policy in policies:
        neighbours.channel.activate(policy)
        await suite.serves(policy.policy.policy_id)
        seen = len(answers)
        await eventually(lambda seen=seen: len(answers) > seen + 20, "traffic goes on")
    stop.set()
    await asyncio.gather(*users)
    assert {"policy-2", "policy-3", "policy-4"} <= set(answers)
    assert (await suite.status()).policy_swaps == 4


async def test_an_announcement_of_the_serving_policy_changes_nothing(suite: Suite) -> None:
    first = publish(suite.neighbours.store_url, "second", seed=2)
    for _ in range(2):
        suite.neighbours.channel.activate(first)
        await suite.serves("second")
    assert (await suite.status()).policy_swaps == 2


async def test_a_roll_back_serves_the_old_answers(suite: Suite) -> None:
    neighbours = suite.neighbours
    before = await suite.ask(["ad-1-2-3"])
    neighbours.channel.activate(publish(neighbours.store_url, "second", seed=2))
    await suite.serves("second")
    assert [ad.ad_id for ad in (await suite.ask(["ad-1-2-3"])).candidates] != [ad.ad_id for ad in before.candidates]
    sha256 = before.policy.sha256
    uri = f"{neighbours.store_url}/policies/first"
    neighbours.channel.activate(training_pb2.Policy(policy=before.policy, uri=uri))
    await suite.serves("first")
    after = await suite.ask(["ad-1-2-3"])
    assert after.policy.sha256 == sha256
    assert [ad.ad_id for ad in after.candidates] == [ad.ad_id for ad in before.candidates]


async def test_a_roll_back_under_traffic_fails_no_request_and_mixes_no_policies(neighbours: Neighbours) -> None:
    histories = [[f"ad-{number}-{number}-{number}"] for number in range(4)]
    under_way, answers, stop = 0, [], asyncio.Event()

    def ids(answer: generation_pb2.GenerateAdsResponse) -> list[str]:
        return [ad.ad_id for ad in answer.candidates]

    async with run_ready_generator(neighbours, result_cache_seconds=0.0) as suite:  # every request is computed
        first = [await suite.ask(history) for history in histories]
        neighbours.channel.activate(publish(neighbours.store_url, "second", seed=2))
        await suite.serves("second")
        second = [await suite.ask(history) for history in histories]
        expected = {"first": list(map(ids, first)), "second": list(map(ids, second))}
        assert all(one != other for one, other in zip(*expected.values(), strict=True))

        async def user(number: int) -> None:
            nonlocal under_way
            while not stop.is_set():
                under_way += 1
                answer = await suite.ask(histories[number % 4])
                under_way -= 1
                assert ids(answer) == expected[answer.policy.policy_id][number % 4]
                answers.append(answer.policy.policy_id)

        users = [asyncio.create_task(user(number)) for number in range(8)]
        await eventually(lambda: len(answers) > 20, "traffic")
        assert under_way == 8
        uri = f"{neighbours.store_url}/policies/first"
        neighbours.channel.activate(training_pb2.Policy(policy=first[0].policy, uri=uri))
        await suite.serves("first")
        seen = len(answers)
        await eventually(lambda: len(answers) > seen + 20, "traffic goes on")
        stop.set()
        await asyncio.gather(*users)
    assert answers[0] == "second"
    assert answers[-1] == "first"


def _other_sha256(folder: Path, policy: training_pb2.Policy) -> None:
    policy.policy.sha256 = "0" * 64


def _no_sha256(folder: Path, policy: training_pb2.Policy) -> None:
    policy.policy.sha256 = "../escape"


def _other_codebook(folder: Path, policy: training_pb2.Policy) -> None:
    policy.policy.codebook_id = "another"


def _other_name(folder: Path, policy: training_pb2.Policy) -> None:
    policy.policy.policy_id = "renamed"


def _elsewhere(folder: Path, policy: training_pb2.Policy) -> None:
    policy.uri = "/elsewhere/policies/bad"


def _truncated(folder: Path, policy: training_pb2.Policy) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def _one_bit_off(folder: Path, policy: training_pb2.Policy) -> None:
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))


def _no_manifest(folder: Path, policy: training_pb2.Policy) -> None:
    (folder / "manifest.json").unlink()


def _no_folder(folder: Path, policy: training_pb2.Policy) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_other_sha256, "sha256"),
        (_no_sha256, "64 lower-case hexadecimal digits"),
        (_other_codebook, "codebook_id: small: expected another"),
        (_other_name, "policy_id: bad: expected renamed"),
        (_elsewhere, "set GR4AD_ARTIFACT_STORE to that of the trainer"),
        (_truncated, "truncated or altered"),
        (_one_bit_off, "truncated or altered"),
        (_no_manifest, "publish it first"),
        (_no_folder, "publish it first"),
    ],
)
async def test_a_bad_policy_is_refused_and_the_old_one_keeps_serving(suite: Suite, damage: object, said: str) -> None:
    neighbours = suite.neighbours
    before = await suite.ask(["ad-1-2-3"])
    bad = publish(neighbours.store_url, "bad", seed=9)
    damage(Path(bad.uri), bad)
    neighbours.channel.activate(bad)
    await suite.reaches(lambda status: said in status.refused_policy, f"refused for {said}")
    status = await suite.status()
    assert status.refused_policy.startswith(f"{bad.policy.policy_id}: ")
    assert status.policy.policy_id == "first"
    assert suite.lifecycle.ready
    after = await suite.ask(["ad-1-2-3"])
    assert [ad.ad_id for ad in after.candidates] == [ad.ad_id for ad in before.candidates]

    neighbours.channel.activate(publish(neighbours.store_url, "good", seed=2))
    await suite.serves("good")


async def test_a_policy_of_other_levels_than_the_beams_is_refused(neighbours: Neighbours) -> None:
    neighbours.channel.activate(publish(neighbours.store_url, "flat", seed=1, level_sizes=(4, 5)))
    async with run_generator(neighbours) as suite:
        await suite.reaches(lambda status: "GR4AD_BEAM_WIDTHS" in status.refused_policy, "refused for its levels")
        assert not suite.lifecycle.ready


async def test_a_policy_that_does_not_fit_the_catalogue_is_refused(suite: Suite) -> None:
    suite.neighbours.channel.activate(publish(suite.neighbours.store_url, "narrow", seed=1, level_sizes=(2, 2, 2)))
    await suite.reaches(
        lambda status: "give codes from 0 to below (2, 2, 2)" in status.refused_policy, "refused for its codes"
    )
    assert (await suite.ask()).policy.policy_id == "first"


async def test_a_policy_waits_for_its_codebook_and_swaps_with_its_catalogue(suite: Suite) -> None:
    neighbours = suite.neighbours
    neighbours.channel.activate(publish(neighbours.store_url, "second", seed=2, codebook_id="other"))
    await suite.reaches(lambda status: "codebook other" in status.refused_policy, "the codebook is missed")
    assert (await suite.ask()).candidates[0].ad_id.startswith("ad-")

    other = Catalogue("other")
    renumbered = other.fill(ALL_SIDS[:40], prefix="renumbered")
    other.put(renumbered[0], ALL_SIDS[0], PAUSED)
    neighbours.catalogues.by_codebook["other"] = other
    await suite.serves("second")
    answer = await suite.ask(renumbered[:5], count=10)
    assert answer.policy.codebook_id == "other"
    assert answer.skipped_history_events == 0
    assert {ad.ad_id for ad in answer.candidates} <= set(renumbered[1:])
    status = await suite.status()
    assert (status.live_ads, status.catalog_cursor) == (39, 41)


async def test_a_newer_announcement_overtakes_one_that_waits(neighbours: Neighbours) -> None:
    async with run_ready_generator(neighbours) as suite:
        await neighbours.sid_assigner.stop()
        neighbours.channel.activate(publish(neighbours.store_url, "waits", seed=2, codebook_id="other"))
        await asyncio.sleep(0.3)
        neighbours.channel.activate(publish(neighbours.store_url, "second", seed=2, codebook_id=CODEBOOK))
        await suite.serves("second")
        assert (await suite.status()).policy_swaps == 2


async def test_an_unreachable_store_delays_a_policy_until_it_is_back(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, attempts = ArtifactStore.fetch_folder, []

    def flaky(store: ArtifactStore, name: str, local: Path) -> Path:
        attempts.append(name)
        if len(attempts) < 3:
            raise UnavailableError("artifact_store", store.url, "cannot read it")
        return fetch(store, name, local)

    monkeypatch.setattr(ArtifactStore, "fetch_folder", flaky)
    suite.neighbours.channel.activate(publish(suite.neighbours.store_url, "second", seed=2))
    await suite.serves("second")
    assert len(attempts) == 3
    assert not (await suite.status()).refused_policy


async def test_a_cache_that_cannot_be_written_is_named(neighbours: Neighbours, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    loader = PolicyLoader(ArtifactStore(neighbours.store_url), tmp_path / "file" / "cache", "cpu", "float32", 1, 3)
    with pytest.raises(UnavailableError, match=f"policy_cache: {tmp_path}.*GR4AD_POLICY_CACHE"):
        loader.load(publish(neighbours.store_url, "second", seed=2))


@pytest.mark.parametrize("compute_type", ["float32", "bfloat16", "int8"])
def test_a_type_that_the_processor_only_emulates_is_warned_of(
    compute_type: str, artifact_store_url: str, tmp_path: Path
) -> None:
    loader = PolicyLoader(ArtifactStore(artifact_store_url), tmp_path / "cache", "cpu", compute_type, 1, 3)
    with capture_logs() as logs:
        loaded = loader.load(publish(artifact_store_url, "second", seed=2))
    loaded.process.close()
    warnings = [entry for entry in logs if entry["event"] == "compute_type_emulated"]
    assert bool(warnings) is not in_hardware(getattr(torch, compute_type), torch.device("cpu"))
    for warning in warnings:
        assert (warning["compute_type"], warning["log_level"]) == (compute_type, "warning")
        assert "GR4AD_COMPUTE_TYPE" in warning["remedy"]


def test_layers_that_nothing_compiles_are_told(
    artifact_store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = publish(artifact_store_url, "second", seed=2)
    loaded = {"policy_id": "second", "level_sizes": (2, 2, 2), "in_hardware": True}
    for lacks in (True, False):
        process = SimpleNamespace(**loaded, lacks_compiler=lacks)
        monkeypatch.setattr("ad_generator.policy_loader.PolicyProcess", lambda *_, process=process: process)
        loader = PolicyLoader(ArtifactStore(artifact_store_url), tmp_path / "cache", "cuda", "bfloat16", 1, 3)
        with capture_logs() as logs:
            loader.load(policy)
        warnings = [entry for entry in logs if entry["event"] == "layers_not_compiled"]
        assert bool(warnings) is lacks
        assert all("gcc" in entry["remedy"] and entry["log_level"] == "warning" for entry in warnings)


async def test_a_policy_that_crashes_its_loader_is_refused(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: object, **kwargs: object) -> None:
        raise MemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("ad_generator.policy_loader.PolicyProcess", crash)
        suite.neighbours.channel.activate(publish(suite.neighbours.store_url, "second", seed=2))
        await suite.reaches(lambda status: "MemoryError: out of memory" in status.refused_policy, "refused")
    assert (await suite.ask()).policy.policy_id == "first"


async def test_a_policy_whose_process_dies_at_its_start_is_refused(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ad_generator.policy_process._run", os.abort)
        suite.neighbours.channel.activate(publish(suite.neighbours.store_url, "second", seed=2))
        await suite.reaches(lambda status: "process" in status.refused_policy, "refused")
    assert (await suite.ask()).policy.policy_id == "first"


async def test_the_process_of_a_replaced_policy_ends(suite: Suite) -> None:
    first = suite.policy_pids()
    suite.neighbours.channel.activate(publish(suite.neighbours.store_url, "second", seed=2))
    await suite.serves("second")
    await eventually(lambda: len(suite.policy_pids()) == 1, "the first policy's process ends")
    assert not first & suite.policy_pids()
    await suite.drain()
    assert not suite.policy_pids()


async def test_the_generator_ends_with_the_process_of_its_policy(neighbours: Neighbours) -> None:
    with pytest.raises(AssertionError, match="ended unasked"):  # it ends by failing: whoever supervises it starts anew
        async with run_ready_generator(neighbours) as suite:
            (pid,) = suite.policy_pids()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await suite.ask()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            await asyncio.wait_for(suite.lifecycle.stopping.wait(), 10)
            await suite.drain()


async def test_the_cache_keeps_the_latest_policies_only(suite: Suite) -> None:
    neighbours = suite.neighbours
    shas = []
    for seed in range(2, 4 + KEPT_POLICIES):
        policy = publish(neighbours.store_url, f"policy-{seed}", seed)
        neighbours.channel.activate(policy)
        await suite.serves(policy.policy.policy_id)
        shas.append(policy.policy.sha256)
    assert set(os.listdir(suite.settings.policy_cache)) == set(shas[-KEPT_POLICIES:])


async def test_a_damaged_cache_is_fetched_again(suite: Suite) -> None:
    neighbours = suite.neighbours
    second = publish(neighbours.store_url, "second", seed=2)
    neighbours.channel.activate(second)
    await suite.serves("second")
    neighbours.channel.activate(publish(neighbours.store_url, "third", seed=3))
    await suite.serves("third")
    cached = Path(suite.settings.policy_cache) / second.policy.sha256 / "weights.safetensors"
    cached.write_bytes(b"garbage")
    neighbours.channel.activate(second)
    await suite.serves("second")
    assert cached.read_bytes() == (Path(second.uri) / "weights.safetensors").read_bytes()


async def test_the_channel_is_followed_again_after_the_trainer_restarts(neighbours: Neighbours) -> None:
    async with run_ready_generator(neighbours) as suite:
        await neighbours.trainer.stop()
        assert (await suite.ask()).policy.policy_id == "first"
        await neighbours.trainer.start()
        neighbours.channel.activate(publish(neighbours.store_url, "second", seed=2))
        await suite.serves("second")


async def test_status_needs_no_policy(neighbours: Neighbours) -> None:
    async with run_generator(neighbours, channel="canary") as suite:
        status = await suite.status()
        assert status.channel == "canary"
        assert not status.HasField("policy")
        assert status.start_time.seconds > 0
        with pytest.raises(grpc.aio.AioRpcError, match="channel canary"):
            await suite.ask()
