"""Layers whose operations torch.compile fuses, for accelerators: what a served policy computes with there.

On a GPU a layer of one position is dozens of kernels that end sooner than the next one is launched. Compiled, few are
left. Each kind of layer is compiled once, not each layer, and for any number of requests and beams.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import Any, Final

import torch
import torch.fx.experimental._config as fx_config

from gr4ad_core.model.layers import CausalLayer, ParallelLayer

COMPILERS: Final = ("cc", "gcc", "clang")
FORMS: Final = 64
"""Of a function at most: each length of a path, one request alone, and one beam alone are forms of their own."""


def can_compile(device: torch.device) -> bool:
    """Tell whether layers on a device can be compiled: what torch.compile writes for a GPU needs a C compiler."""
    return device.type == "cuda" and any(map(shutil.which, (*COMPILERS, os.environ.get("CC", ""))))


def compile_layers(trunk: Iterable[ParallelLayer], decoder: Iterable[CausalLayer], backend: str = "inductor") -> None:
    """Let layers that are not trained any more be compiled as they are first called.

    Args:
        trunk: Compiled whole.
        decoder: Compiled for `step`, before and after what it asks of its caller.
        backend: Of torch.compile.
    """
    fx_config.use_duck_shape = False  # as many beams now as context vectors are not always as many
    how: dict[str, Any] = {"dynamic": True, "fullgraph": True, "backend": backend, "recompile_limit": FORMS}
    for layer in trunk:
        layer.compile(**how)
    for causal in decoder:
        for name in ("project", "read"):
            setattr(causal, name, torch.compile(getattr(causal, name), **how))


def stop_compiling() -> None:
    """Compile nothing more in this process: a form that no call had before runs operation by operation.

    For a server before its first request: none waits for a compiler.
    """
    torch.compiler.set_stance("eager_on_recompile")
