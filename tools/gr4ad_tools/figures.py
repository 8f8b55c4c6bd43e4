"""Figures as data: every command that measures prints one JSON object of this form, and reports are drawn from it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

GEMM_SIZE = 768  # large enough to be bound by arithmetic, small enough to take milliseconds
GEMM_ROUNDS = 7
GEMM_SECONDS = 0.5  # no further round after this: a type without hardware support is a hundred times slower


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        value: The number itself.
        unit: Its unit; empty for a pure number.
        n: How many observations it comes from.
        min: The smallest observation, where observations are kept.
        max: The largest observation, where observations are kept.
    """

    value: float
    unit: str = ""
    n: int = 1
    min: float | None = None
    max: float | None = None


def percentile(samples: Sequence[float], q: float, unit: str) -> Figure:
    """Return the q-th percentile (0 to 100) of the samples, by the nearest sample at or above it."""
    if not samples:
        return Figure(float("nan"), unit, 0)
    values = np.asarray(samples, dtype=np.float64)
    return Figure(
        float(np.percentile(values, q, method="higher")), unit, len(values), float(values.min()), float(values.max())
    )


def mean(samples: Sequence[float], unit: str = "") -> Figure:
    """Return the mean of the samples."""
    if not len(samples):
        return Figure(float("nan"), unit, 0)
    values = np.asarray(samples, dtype=np.float64)
    return Figure(float(values.mean()), unit, len(values), float(values.min()), float(values.max()))


def machine() -> dict[str, Any]:
    """Describe the machine by what bounds the model on it: its processors and its measured rate of matrix products."""
    return {
        "cpus": os.cpu_count(),
        "gemm_gflops_f32": round(_gemm_gflops(torch.float32), 1),
        "gemm_gflops_bf16": round(_gemm_gflops(torch.bfloat16), 1),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def _gemm_gflops(dtype: torch.dtype) -> float:
    a = torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype)
    seconds: list[float] = []
    while len(seconds) < GEMM_ROUNDS and sum(seconds) < GEMM_SECONDS:
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return float(2 * GEMM_SIZE**3 / np.median(seconds) / 1e9)


def document(figures: Mapping[str, Figure], command: str, seed: int, **extra: Any) -> dict[str, Any]:
    """Assemble the object that is printed or written: figures, machine, command, version and seed."""
    return {
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "machine": machine(),
        "command": command,
        "version": importlib.metadata.version("gr4ad"),
        "seed": seed,
        **extra,
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=True) + "\n")
    temporary.replace(path)
