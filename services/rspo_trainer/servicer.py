"""TrainingService over gRPC: translates and delegates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_runtime.errors import InvalidArgumentError
from gr4ad_runtime.telemetry import current_traceparent

from rspo_trainer import page_token
from rspo_trainer.activation_watch import ActivationWatch
from rspo_trainer.messages import identifier, policy_message, run_message, watch_message
from rspo_trainer.policy_store import PolicyStore
from rspo_trainer.recipe import check_preset
from rspo_trainer.run_store import RunStore
from rspo_trainer.worker import Worker

Context = grpc.aio.ServicerContext[Any, Any]


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """Answers the calls of TrainingService."""

    def __init__(self, runs: RunStore, policies: PolicyStore, watch: ActivationWatch, worker: Worker) -> None:
        """Serve what the stores hold; the worker is woken for new and cancelled runs."""
        self._runs = runs
        self._policies = policies
        self._watch = watch
        self._worker = worker

    async def CreateTrainingRun(
        self, request: training_pb2.CreateTrainingRunRequest, context: Context
    ) -> training_pb2.CreateTrainingRunResponse:
        """Queue a run."""
        identifier(request.request_id, "request_id")
        check_preset(request.preset)
        if request.WhichOneof("source") == "online":
            await self._check_online(request)
        run = await self._runs.create(request, current_traceparent())
        self._worker.wake()
        return training_pb2.CreateTrainingRunResponse(training_run=run_message(run))

    async def _check_online(self, request: training_pb2.CreateTrainingRunRequest) -> None:
        if not request.channel:
            raise InvalidArgumentError("channel", "''", "an online run publishes as it learns: name a channel")
        if request.preset or request.epochs:
            stated = f"{request.preset!r}, {request.epochs}"
            raise InvalidArgumentError(
                "preset, epochs", stated, "leave them out: an online run goes on with its policy"
            )
        await self._policies.get(identifier(request.online.policy_id, "online.policy_id"))

    async def GetTrainingRun(
        self, request: training_pb2.GetTrainingRunRequest, context: Context
    ) -> training_pb2.GetTrainingRunResponse:
        """Look a run up."""
        run = await self._runs.get(identifier(request.run_id, "run_id"))
        return training_pb2.GetTrainingRunResponse(training_run=run_message(run))

    async def ListTrainingRuns(
        self, request: training_pb2.ListTrainingRunsRequest, context: Context
    ) -> training_pb2.ListTrainingRunsResponse:
        """List runs."""
        limit = request.page_size or page_token.DEFAULT_PAGE_SIZE
        runs = await self._runs.page(page_token.decode(page_token.RUNS, request.page_token), limit + 1)
        return training_pb2.ListTrainingRunsResponse(
            training_runs=map(run_message, runs[:limit]),
            next_page_token=page_token.encode(page_token.RUNS, runs[limit - 1].number) if len(runs) > limit else "",
        )

    async def CancelTrainingRun(
        self, request: training_pb2.CancelTrainingRunRequest, context: Context
    ) -> training_pb2.CancelTrainingRunResponse:
        """Cancel a run."""
        run = await self._runs.cancel(identifier(request.run_id, "run_id"))
        self._worker.cancel(run.run_id)
        return training_pb2.CancelTrainingRunResponse(training_run=run_message(run))

    async def ListPolicies(
        self, request: training_pb2.ListPoliciesRequest, context: Context
    ) -> training_pb2.ListPoliciesResponse:
        """List policies."""
        limit = request.page_size or page_token.DEFAULT_PAGE_SIZE
        policies = await self._policies.page(page_token.decode(page_token.POLICIES, request.page_token), limit + 1)
        more = len(policies) > limit
        return training_pb2.ListPoliciesResponse(
            policies=map(policy_message, policies[:limit]),
            next_page_token=page_token.encode(page_token.POLICIES, policies[limit - 1].number) if more else "",
        )

    async def ActivatePolicy(
        self, request: training_pb2.ActivatePolicyRequest, context: Context
    ) -> training_pb2.ActivatePolicyResponse:
        """Make a policy current in a channel."""
        policy_id = identifier(request.policy_id, "policy_id")
        policy = await self._policies.activate(policy_id, request.channel, current_traceparent())
        return training_pb2.ActivatePolicyResponse(policy=policy_message(policy))

    async def RollBackPolicy(
        self, request: training_pb2.RollBackPolicyRequest, context: Context
    ) -> training_pb2.RollBackPolicyResponse:
        """Make a channel's earlier policy current again."""
        expected = identifier(request.expected_policy_id, "expected_policy_id")
        policy = await self._policies.roll_back(request.channel, expected, current_traceparent())
        return training_pb2.RollBackPolicyResponse(policy=policy_message(policy))

    async def WatchPolicies(
        self, request: training_pb2.WatchPoliciesRequest, context: Context
    ) -> AsyncIterator[training_pb2.WatchPoliciesResponse]:
        """Stream a channel's policies."""
        async with aclosing(self._watch.watch(request.channel)) as activations:
            async for activation in activations:
                yield watch_message(activation)
