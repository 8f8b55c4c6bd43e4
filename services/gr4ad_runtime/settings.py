"""Configuration that every service has. A service subclasses it, reads it once in `__main__` and passes it down."""

from __future__ import annotations

import sys
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """Settings read from environment variables: `GR4AD_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="GR4AD_", frozen=True)

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to serve on.")
    port: int = Field(default=0, ge=0, le=65535, description="Port to serve on; 0 for a free one.")
    database_url: str = Field(
        default="", description="PostgreSQL to keep data in, as postgresql+psycopg://user:password@host:port/database."
    )
    artifact_store: str = Field(
        default="./out/artifacts", min_length=1, description="Folder or fsspec URL of codebooks and policies."
    )
    otlp_endpoint: str = Field(
        default="", description="OTLP/gRPC collector for traces and metrics, as http://host:port; empty for none."
    )
    trace_sample_ratio: float = Field(
        default=1.0, ge=0.0, le=1.0, description="Share of traces that start here and are recorded."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level logged.")
    reflection: bool = Field(default=False, description="Let clients list the services and messages served.")
    drain_seconds: float = Field(
        default=5.0, ge=0.0, le=600.0, description="Longest time that calls under way get to finish at a stop."
    )
    sid_assigner_address: str = Field(default="127.0.0.1:50051", description="Where the SID assigner serves.")
    ad_generator_address: str = Field(default="127.0.0.1:50052", description="Where the generator serves.")
    reward_logger_address: str = Field(default="127.0.0.1:50053", description="Where the reward logger serves.")
    rspo_trainer_address: str = Field(default="127.0.0.1:50054", description="Where the trainer serves.")


Settings = TypeVar("Settings", bound=ServiceSettings)


def read_settings(kind: type[Settings]) -> Settings:
    """Read a service's settings from the environment; end the process with exit code 2 where they are wrong.

    What is printed names each variable, its value and the rule.
    """
    try:
        return kind()
    except ValidationError as error:
        for problem in error.errors():
            name = "GR4AD_" + "_".join(str(part) for part in problem["loc"]).upper()
            sys.stderr.write(f"{name}: {problem['input']}: {problem['msg']}; correct the environment variable\n")
        sys.exit(2)
