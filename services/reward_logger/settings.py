"""Configuration of the reward logger."""

from __future__ import annotations

from gr4ad_runtime.settings import ServiceSettings
from pydantic import Field


class RewardLoggerSettings(ServiceSettings):
    """Settings of the reward logger, from `GR4AD_*` variables; see `ServiceSettings` for those of every service."""

    port: int = Field(default=50053, ge=0, le=65535, description="Port to serve on; 0 for a free one.")
    attribution_window_seconds: float = Field(
        default=604_800.0, gt=0.0, le=31_536_000.0, description="Longest time from a served list to its responses."
    )
    read_chunk: int = Field(default=200, ge=1, le=1000, description="Lists in one message of ReadRewardedLists.")
