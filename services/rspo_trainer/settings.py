"""Configuration of the trainer."""

from __future__ import annotations

from typing import Literal

from gr4ad_runtime.settings import ServiceSettings
from pydantic import Field


class RspoTrainerSettings(ServiceSettings):
    """Settings of the trainer, read from `GR4AD_*` variables; see `ServiceSettings` for those of every service."""

    port: int = Field(default=50054, ge=0, le=65535, description="Port to serve on; 0 for a free one.")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Where runs compute.")
    torch_threads: int = Field(default=2, ge=1, le=256, description="Processor threads a run computes with.")
    progress_seconds: float = Field(
        default=1.0, gt=0.0, le=60.0, description="How often a run's progress is stored and its cancellation noticed."
    )
    watch_heartbeat_seconds: float = Field(
        default=3.0, gt=0.0, le=60.0, description="Longest silence of WatchPolicies, so that a dead peer is noticed."
    )
    online_threads: int = Field(
        default=1, ge=1, le=256, description="Processor threads of an online run, which others share the machine with."
    )
    outcome_wait_seconds: float = Field(
        default=600.0,
        ge=0.0,
        le=2_592_000.0,
        description="How long an online run leaves a served list for its outcomes to come.",
    )
    publish_lists: int = Field(
        default=20_000, ge=1, description="Lists between two publications of an online run that says none."
    )
    publish_seconds: float = Field(
        default=300.0,
        gt=0.0,
        le=86_400.0,
        description="Time after which an online run that has learned publishes, however few lists there were.",
    )
    dependency_wait_seconds: float = Field(
        default=60.0, ge=0.0, le=3600.0, description="How long a run waits for a service it reads from to come back."
    )
