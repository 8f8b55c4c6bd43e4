"""Configuration of the generator."""

from __future__ import annotations

from typing import Annotated, Any

from gr4ad_core.model.config import ComputeType
from gr4ad_runtime.settings import ServiceSettings
from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode


class AdGeneratorSettings(ServiceSettings):
    """Settings of the generator, read from `GR4AD_*` variables; see `ServiceSettings` for those of every service."""

    port: int = Field(default=50052, ge=0, le=65535, description="Port to serve gRPC on; 0 for a free one.")
    rest_port: int = Field(
        default=0, ge=0, le=65535, description="Port of KServe's REST server, on the same address; 0 for none."
    )
    model_name: str = Field(
        default="gr4ad", min_length=1, description="Name of the model in the Open Inference Protocol."
    )
    channel: str = Field(
        default="stable", pattern="^[a-z][a-z0-9-]{0,62}$", description="Channel whose policies are served."
    )
    policy_cache: str = Field(
        default="./out/policy-cache", min_length=1, description="Local folder that policies are fetched to."
    )
    device: str = Field(default="cpu", min_length=1, description="Torch device to compute on, such as cpu or cuda.")
    compute_type: ComputeType = Field(
        default="float32", description="Type that layers compute in, int8 on the CPU; heads and scores stay float32."
    )
    torch_threads: int = Field(default=1, ge=1, le=256, description="Threads of one model call.")
    beam_widths: Annotated[tuple[int, ...], NoDecode] = Field(
        default=(32, 64, 128), description="Beams to keep at each SID level, such as 32-64-128."
    )
    beam_scale_min: float = Field(
        default=0.25, gt=0.0, le=1.0, description="Smallest factor on the widths, under load; 1 to never narrow them."
    )
    beam_scale_max: float = Field(
        default=1.6, ge=1.0, le=8.0, description="Largest factor on the widths, when idle; 1 to never widen them."
    )
    value_weight: float = Field(
        default=1.0, ge=0.0, le=100.0, description="Weight of log(predicted eCPM) beside log_prob in the final ranking."
    )
    # A little over half of the requests usually under way: while one half computes, the other is read and written.
    max_batch_size: int = Field(default=9, ge=1, le=1024, description="Requests of one model call at most.")
    max_batch_wait_us: int = Field(
        default=1000, ge=0, le=1_000_000, description="How long a request waits for company, in microseconds."
    )
    queue_limit: int = Field(default=256, ge=1, le=65536, description="Requests waiting for the model at most.")
    latency_budget_us: int = Field(
        default=1_000_000, ge=1, le=60_000_000, description="Time for a request that states none, in microseconds."
    )
    currency: str = Field(
        default="USD",
        pattern="^[A-Z]{3}$",
        description="Currency of the accounts, ISO 4217; OpenRTB bids are made in it.",
    )
    bid_margin_us: int = Field(
        default=20_000,
        ge=0,
        le=10_000_000,
        description="What of an OpenRTB request's tmax is kept back for the network, in microseconds.",
    )
    list_queue_limit: int = Field(
        default=8192, ge=1, le=1_000_000, description="Served lists waiting for the reward log at most."
    )

    result_cache_seconds: float = Field(
        default=60.0, ge=0.0, le=3600.0, description="How old a kept answer may be that is given again; 0 keeps none."
    )
    result_cache_entries: int = Field(default=10_000, ge=1, le=1_000_000, description="Answers kept at most.")
    result_cache_mb: int = Field(
        default=64, ge=1, le=65536, description="Memory that kept answers may take, by estimate, in MiB."
    )

    @field_validator("compute_type")
    @classmethod
    def _check_int8(cls, compute_type: str, info: ValidationInfo) -> str:
        device = info.data.get("device", "cpu")
        if compute_type == "int8" and device != "cpu":
            raise ValueError(f"int8 on {device}: give bfloat16, int8 is for the device cpu")
        return compute_type

    @field_validator("beam_widths", mode="before")
    @classmethod
    def _parse_widths(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(int(width) for width in value.split("-"))
        except ValueError:
            raise ValueError(f"{value!r}: give one width per SID level, such as 32-64-128") from None

    @field_validator("beam_widths")
    @classmethod
    def _check_widths(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if not widths or len(widths) > 8 or min(widths) < 1 or max(widths) > 4096:
            raise ValueError(f"{widths}: give 1 to 8 widths of 1 to 4096, one per SID level")
        return widths
