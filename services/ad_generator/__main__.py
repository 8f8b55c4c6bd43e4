"""Runs the generator: `python -m ad_generator`."""

from __future__ import annotations

import os
import sys

NAME = "ad_generator"
SWITCH_INTERVAL_S = 0.0003
"""How long the thread that prepares model calls may keep the interpreter from the event loop; Python's default is 5 ms,
which is all the time that a refusal has."""


def main() -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code."""
    # Imported here: the policies' processes import this module, too, and need nothing of it.
    from gr4ad_runtime.app import EXIT_MISCONFIGURED
    from gr4ad_runtime.errors import AddressInUseError
    from gr4ad_runtime.log import configure_logging, get_logger
    from gr4ad_runtime.settings import read_settings

    from ad_generator.settings import AdGeneratorSettings

    settings = read_settings(AdGeneratorSettings)
    # For the policies' processes, before torch starts there: it decides how many threads a model call may take.
    os.environ["OMP_NUM_THREADS"] = str(settings.torch_threads)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    configure_logging(NAME, settings.log_level)  # before KServe would set up its own

    from ad_generator.kserve_model import GeneratorModel
    from ad_generator.kserve_server import GeneratorServer
    from ad_generator.wiring import serve_engine

    server = GeneratorServer(settings.host, settings.rest_port)
    model = GeneratorModel(
        settings.model_name, len(settings.beam_widths), lambda model: serve_engine(settings, model, server)
    )
    try:
        server.start([model])
    except AddressInUseError as error:
        get_logger(__name__).error("start failed", error=error.message)
        return EXIT_MISCONFIGURED
    return server.exit_code


if __name__ == "__main__":
    sys.exit(main())
