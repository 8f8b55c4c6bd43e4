"""Configuration of the SID assigner."""

from __future__ import annotations

from gr4ad_runtime.settings import ServiceSettings
from pydantic import Field


class SidAssignerSettings(ServiceSettings):
    """Settings of the SID assigner, read from `GR4AD_*` variables; see `ServiceSettings` for those of every service."""

    port: int = Field(default=50051, ge=0, le=65535, description="Port to serve on; 0 for a free one.")
    catalog_chunk: int = Field(default=1000, ge=1, le=10000, description="Entries in one message of ReadCatalog.")
    catalog_heartbeat_seconds: float = Field(
        default=3.0, gt=0.0, le=60.0, description="Longest silence of ReadCatalog, so that a dead peer is noticed."
    )
    catalog_poll_seconds: float = Field(
        default=0.5, gt=0.0, le=5.0, description="How often the feed is looked at in case a notification was lost."
    )
    concurrent_batches: int = Field(
        default=4, ge=1, le=64, description="Batches written at a time; each holds a database connection."
    )
    waiting_batches: int = Field(
        default=64, ge=0, le=10000, description="Batches that wait for their turn at most; more are refused."
    )
    concurrent_snapshots: int = Field(
        default=4, ge=1, le=64, description="Snapshots read at a time; each holds a database connection."
    )
