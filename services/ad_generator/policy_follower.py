"""Follows a channel's policies: loads each new one beside the serving one, warms it up, and swaps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from concurrent.futures import Executor, Future
from contextlib import aclosing
from typing import Final

from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_runtime import semconv
from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.channels import reconnect
from gr4ad_runtime.errors import FailedPreconditionError, Gr4adError
from gr4ad_runtime.log import get_logger
from gr4ad_runtime.telemetry import context_of, tracer

from ad_generator.batch_plan import Limits
from ad_generator.catalog_mirror import CatalogMirror
from ad_generator.engine import Engine, LoadedPolicy, ServingState
from ad_generator.policy_loader import PolicyLoader
from ad_generator.policy_process import PolicyProcessGoneError, PolicyRefusedError
from ad_generator.warm_up import warm_up

log = get_logger(__name__)

LONGEST_SILENCE_S: Final = 15.0
"""The trainer sends heartbeats every few seconds; after this the connection counts as dead."""
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 10.0
IN_STEP_S: Final = 0.05

MakeMirror = Callable[[str, tuple[int, ...]], CatalogMirror]
"""Makes the mirror of a codebook, by its name and level sizes."""


class PolicyFollower:
    """Keeps the engine on its channel's current policy, and on the catalogue of that policy's codebook.

    A policy that cannot be served is refused: the one before it keeps serving. A policy that waits for something (the
    artifact store, the SID assigner) gives way to the next announcement.
    """

    def __init__(
        self,
        stub: training_pb2_grpc.TrainingServiceAsyncStub,
        channel: str,
        loader: PolicyLoader,
        make_mirror: MakeMirror,
        engine: Engine,
        loading: Executor,
        serving: Executor,
        limits: Limits,
        on_ready: Callable[[], None],
    ) -> None:
        """Make a follower; `run` must be running for it to follow.

        Args:
            stub: Of the service that announces policies.
            channel: Channel to follow.
            loader: Loads policies.
            make_mirror: Makes the mirror of a codebook.
            engine: Gets its state from here.
            loading: Where policies are loaded and warmed up, apart from the thread that serves.
            serving: Where the engine computes, one call after the other.
            limits: Of the batches and widths to warm up for.
            on_ready: Called after every swap.
        """
        self._stub = stub
        self._channel = channel
        self._loader = loader
        self._make_mirror = make_mirror
        self._engine = engine
        self._loading = loading
        self._serving = serving
        self._limits = limits
        self._on_ready = on_ready
        self._wanted = training_pb2.WatchPoliciesResponse()
        self._announced = asyncio.Event()
        self._mirror_task: asyncio.Task[None] | None = None
        self.swaps = 0
        """Policies swapped in."""
        self.refusals = 0
        """Policies refused, each attempt counted."""
        self.refused = ""
        """Why the last refused policy was refused; empty if none was."""

    async def run(self) -> None:
        """Follow the channel until cancelled; then the serving policy's process ends with it.

        Raises:
            ExceptionGroup: The serving policy's process ended unasked.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch())
                tasks.create_task(self._adopt_latest(tasks))
                tasks.create_task(self._keep_in_step())
        finally:
            if self._engine.state is not None:
                self._serving.submit(self._engine.state.policy.process.close)

    async def _watch(self) -> None:
        announcements = reconnect(
            self._open, name=f"policies of channel {self._channel}", silence_s=LONGEST_SILENCE_S, longest_wait_s=2.0
        )
        async with aclosing(announcements):  # type: ignore[type-var]  # an asynchronous generator
            async for announcement in announcements:
                if announcement.HasField("policy"):
                    self._wanted = announcement
                    self._announced.set()

    def _open(self) -> AsyncIterable[training_pb2.WatchPoliciesResponse]:
        return self._stub.WatchPolicies(training_pb2.WatchPoliciesRequest(channel=self._channel))

    async def _adopt_latest(self, tasks: asyncio.TaskGroup) -> None:
        """Adopt the latest announcement, abandoning one that is still under way."""
        adopting: asyncio.Task[None] | None = None
        while True:
            await self._announced.wait()
            self._announced.clear()
            if adopting is not None and not adopting.done():
                adopting.cancel()
                await asyncio.wait([adopting])
            adopting = tasks.create_task(self._adopt(self._wanted, tasks))

    async def _adopt(self, announcement: training_pb2.WatchPoliciesResponse, tasks: asyncio.TaskGroup) -> None:
        """Swap a policy in; try again for as long as another attempt may succeed."""
        ref = announcement.policy.policy
        wait_s = FIRST_WAIT_S
        while self._engine.state is None or self._engine.state.policy.ref != ref:
            try:
                await self._swap(announcement, tasks)
            except PolicyRefusedError as error:
                self._refuse(ref.policy_id, str(error))
                return
            except FailedPreconditionError as error:  # the catalogue does not fit now, but may come to
                self._refuse(ref.policy_id, error.message)
            except Gr4adError as error:
                log.warning("policy_delayed", policy_id=ref.policy_id, error=error.message)
            except Exception as error:  # whatever a policy does to its loader, the one before it keeps serving
                log.exception("policy_crashed", policy_id=ref.policy_id)
                self._refuse(ref.policy_id, f"{type(error).__name__}: {error}")
                return
            else:
                return
            await back_off(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _swap(self, announcement: training_pb2.WatchPoliciesResponse, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        ref = announcement.policy.policy
        with tracer(__name__).start_as_current_span(
            semconv.SPAN_SWAP_POLICY,
            context=context_of(announcement.traceparent),
            attributes={
                semconv.POLICY_ID: ref.policy_id,
                semconv.POLICY_CHANNEL: self._channel,
                semconv.CODEBOOK_ID: ref.codebook_id,
            },
        ):
            policy = await self._load(announcement.policy)
            try:
                mirror, task = self._mirror_for(policy, tasks)
                try:
                    await mirror.wait_ready()
                    await loop.run_in_executor(self._loading, warm_up, self._engine, policy, mirror.table, self._limits)
                except BaseException:
                    if task is not self._mirror_task:
                        task.cancel()
                    raise
            except BaseException:
                self._loading.submit(policy.process.close)
                raise
            policy.process.serve()
            before, self._engine.state = self._engine.state, ServingState(policy, mirror)
        tasks.create_task(self._watch_process(policy))
        if before is not None:
            # Behind the call that may be under way, which still has the old state.
            self._serving.submit(before.policy.process.close)
        if self._mirror_task is not None and self._mirror_task is not task:
            self._mirror_task.cancel()
        self._mirror_task = task
        self.swaps += 1
        live_ads = len(mirror.table.live_slots)
        log.info("policy_swapped_in", policy_id=ref.policy_id, codebook_id=ref.codebook_id, live_ads=live_ads)
        self._on_ready()

    async def _load(self, policy: training_pb2.Policy) -> LoadedPolicy:
        """Load a policy; one that nobody waits for any more is closed again."""
        loading = self._loading.submit(self._loader.load, policy)
        try:
            return await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(_close_loaded)
            raise

    async def _keep_in_step(self) -> None:
        """Tell the serving policy's process of changes even while no request comes, so that none has many to bring."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(IN_STEP_S)
            state = self._engine.state
            if state is not None and state.policy.process.is_behind(state.mirror.table):
                await loop.run_in_executor(self._serving, self._engine.catch_up)

    async def _watch_process(self, policy: LoadedPolicy) -> None:
        """Wait for the end of a policy's process, which nothing survives while the policy serves."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(policy.process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(policy.process.sentinel)
        state = self._engine.state
        if state is not None and state.policy is policy:
            raise PolicyProcessGoneError(f"process {policy.process.pid} of {policy.ref.policy_id} ended unasked")

    def _mirror_for(self, policy: LoadedPolicy, tasks: asyncio.TaskGroup) -> tuple[CatalogMirror, asyncio.Task[None]]:
        """Return the mirror of a policy's codebook: the serving one where it fits, else a new one."""
        level_sizes = policy.process.level_sizes
        state = self._engine.state
        if state is not None and self._mirror_task is not None:
            mirror = state.mirror
            if (mirror.codebook_id, mirror.level_sizes) == (policy.ref.codebook_id, level_sizes):
                return mirror, self._mirror_task
        mirror = self._make_mirror(policy.ref.codebook_id, level_sizes)
        return mirror, tasks.create_task(mirror.run())

    def _refuse(self, policy_id: str, reason: str) -> None:
        self.refusals += 1
        self.refused = f"{policy_id}: {reason}"
        log.error("policy_refused", policy_id=policy_id, channel=self._channel, reason=reason)


def _close_loaded(loading: Future[LoadedPolicy]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().process.close()
