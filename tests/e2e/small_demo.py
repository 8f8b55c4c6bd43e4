"""Runs the demo, small, in a process of its own: telemetry belongs to a process, and the tests' own has another.

Usage: python small_demo.py DATA OUT RESULT      RESULT becomes a pickle of the summary and the record
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path

from gr4ad_tools.demo import online, phases
from gr4ad_tools.demo.run import DemoOptions, run_demo
from rich.console import Console

data, out, result = (Path(argument) for argument in sys.argv[1:])
phases.SWAPS, phases.PROBES = 4, 4
online.REQUESTS, online.PUBLISH_LISTS = 2048, 256
options = DemoOptions(data, out, seed=3, preset="tiny", command="gr4ad demo")
result.write_bytes(pickle.dumps(asyncio.run(run_demo(options, Console()))))
