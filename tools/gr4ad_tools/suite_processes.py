"""The processes of the suite: which service each runs, where it listens, what sets it apart."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

HOST: Final = "127.0.0.1"
CANARY: Final = "ad_generator_canary"


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """A process that runs a service.

    Attributes:
        service: The service's package.
        port: Its port by default.
        in_background: Whether it yields the processor to the others.
        env: Environment variables that set it apart from another process of the same service.
    """

    service: str
    port: int
    in_background: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return [*(["nice", "-n", "5"] if self.in_background else []), sys.executable, "-m", self.service]


# In the order they are stopped in: callers before those they call. In the background is what nobody waits for: on a
# shared machine the generators' callers would.
PROCESSES: Final[Mapping[str, ServiceProcess]] = {
    "ad_generator": ServiceProcess("ad_generator", 50052),
    # A REST port that the surroundings set is the first generator's.
    CANARY: ServiceProcess("ad_generator", 50055, env={"GR4AD_CHANNEL": "canary", "GR4AD_REST_PORT": "0"}),
    "rspo_trainer": ServiceProcess("rspo_trainer", 50054, in_background=True),
    "reward_logger": ServiceProcess("reward_logger", 50053, in_background=True),
    "sid_assigner": ServiceProcess("sid_assigner", 50051),
}


def chosen_processes(canary: bool) -> dict[str, ServiceProcess]:
    """Return the processes to run by name: one of each service, and with `canary` a second generator."""
    return {name: process for name, process in PROCESSES.items() if canary or name != CANARY}


def default_ports(canary: bool = False) -> dict[str, int]:
    """Return the default port of each process."""
    return {name: process.port for name, process in chosen_processes(canary).items()}


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
