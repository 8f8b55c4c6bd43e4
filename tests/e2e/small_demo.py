"""Runs the demo, small, in a process of its own: telemetry belongs to a process, and the tests' own has another.

Usage: python small_demo.py DATA OUT RESULT      RESULT becomes a pickle of the summary and the record
       python small_demo.py chaos OUT RESULT     on a simulated market, while each service is killed in turn
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path

from gr4ad_tools.demo import kills, online, phases, run
from gr4ad_tools.demo.run import DemoOptions, run_demo
from rich.console import Console

chaos = sys.argv[1] == "chaos"
data, out, result = (Path(argument) for argument in sys.argv[1:])
run.SCENARIO = "tiny"
phases.SWAPS, phases.PROBES = 4, 4
if chaos:
    phases.SWAPS, phases.PROBES, phases.TRACE_WAIT_S = 2, 1, 2.0  # traces die with the services that hold them
    kills.FEW_LISTS = 100_000  # the next one is killed before the log has caught up
online.REQUESTS, online.PUBLISH_LISTS = 2048, 256
options = DemoOptions(None if chaos else data, out, seed=3, preset="tiny", command="gr4ad demo", chaos=chaos)
result.write_bytes(pickle.dumps(asyncio.run(run_demo(options, Console()))))
