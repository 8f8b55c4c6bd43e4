"""Which types a device multiplies in hardware: in others, a served policy answers correctly, and far too late."""

from __future__ import annotations

from functools import cache
from typing import Final

import torch

PROCESSOR_FEATURES: Final = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.int8: ("avx512_vnni", "amx_int8", "i8mm"),
}
"""Names of torch's for what a processor needs, any of each."""


def in_hardware(compute_type: torch.dtype, device: torch.device) -> bool:
    """Tell whether a device multiplies numbers of a compute type in hardware.

    A processor that does not is many times slower in that type than in float32. Where layers multiply in
    int8, all else is in bfloat16 (`LazyAr.for_serving`), so int8 needs both.
    """
    if compute_type == torch.float32:
        return True
    if device.type == "cuda":
        return compute_type == torch.bfloat16 and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    needed = {torch.bfloat16, compute_type}
    return all(any(has.get(name, False) for name in PROCESSOR_FEATURES[each]) for each in needed)


@cache
def multiplies_tiles() -> bool:
    """Tell whether the processor multiplies whole tiles of bfloat16 by one instruction (AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
