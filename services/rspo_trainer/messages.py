"""Translates between the contract's messages and what the service handles."""

from __future__ import annotations

from gr4ad.training.v1 import training_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_runtime.errors import InvalidArgumentError

from rspo_trainer.models import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED
from rspo_trainer.policy_store import Activation, Policy
from rspo_trainer.training_run import Run

STATES = {
    QUEUED: training_pb2.TRAINING_RUN_STATE_QUEUED,
    RUNNING: training_pb2.TRAINING_RUN_STATE_RUNNING,
    SUCCEEDED: training_pb2.TRAINING_RUN_STATE_SUCCEEDED,
    FAILED: training_pb2.TRAINING_RUN_STATE_FAILED,
    CANCELLED: training_pb2.TRAINING_RUN_STATE_CANCELLED,
}


def run_message(run: Run) -> training_pb2.TrainingRun:
    """Return a run as callers see it."""
    message = training_pb2.TrainingRun(
        run_id=run.run_id,
        state=STATES[run.state],
        step=run.step,
        total_steps=run.total_steps,
        losses=[training_pb2.LossPoint(step=step, loss=loss) for step, loss in run.losses],
        metrics=run.metrics,
        error=run.error,
        cursor=run.cursor,
    )
    message.create_time.FromDatetime(run.create_time)
    if run.end_time is not None:
        message.end_time.FromDatetime(run.end_time)
    if run.policy is not None:
        policy_id, codebook_id, sha256 = run.policy
        message.policy.CopyFrom(type_pb2.PolicyRef(policy_id=policy_id, codebook_id=codebook_id, sha256=sha256))
    return message


def policy_message(policy: Policy) -> training_pb2.Policy:
    """Return a policy as callers see it."""
    message = training_pb2.Policy(
        policy=type_pb2.PolicyRef(policy_id=policy.policy_id, codebook_id=policy.codebook_id, sha256=policy.sha256),
        uri=policy.uri,
        metrics=policy.metrics,
        channels=policy.channels,
    )
    message.create_time.FromDatetime(policy.create_time)
    return message


def watch_message(activation: Activation | None) -> training_pb2.WatchPoliciesResponse:
    """Return an activation, or a heartbeat, as watchers see it."""
    if activation is None:
        return training_pb2.WatchPoliciesResponse()
    return training_pb2.WatchPoliciesResponse(
        policy=policy_message(activation.policy), traceparent=activation.traceparent
    )


def identifier(value: str, field: str) -> str:
    """Return an id that the database can hold.

    Raises:
        InvalidArgumentError: It holds a NUL character.
    """
    if "\0" in value:
        raise InvalidArgumentError(field, repr(value), "holds a NUL character, which cannot be stored: leave it out")
    return value
