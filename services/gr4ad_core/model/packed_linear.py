"""Linear layers whose weights are laid out once, for processors: what a served policy computes with.

oneDNN multiplies fastest by weights in blocks of its own. `nn.Linear` keeps rows: its weights are brought into blocks
at every call, or a slower product is taken. Here that is done once, and a residual is added as the product is written.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from gr4ad_core.model.layers import SwiGlu

ROWS: Final = 2048
"""For how many rows blocks are chosen, those of a full batch's beams; others are multiplied by the same blocks."""

_mkldnn: Any = torch.ops.mkldnn


class PackedLinear(nn.Module):
    """Takes the place of an `nn.Linear`, or of a `ResidualLinear`, that is not trained any more."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Lay out weights `[out, in]`; `bias` is `[out]`."""
        super().__init__()
        self._packed = _packed(weight)
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map `[..., in]` to `[..., out]`; add it to a residual `[..., out]` where one is given."""
        if residual is None:
            mapped: Tensor = _mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
            return mapped
        added: Tensor = _mkldnn._linear_pointwise.binary(x, residual.contiguous(), self._packed, self._bias, "add")
        return added


class PackedSwiGlu(nn.Module):
    """Takes the place of a `SwiGlu`: gate and product are applied as their projections are written."""

    def __init__(self, block: SwiGlu) -> None:
        """Lay out the weights of a block, which is not needed afterwards."""
        super().__init__()
        self._gate, self._value = (_packed(rows) for rows in block.gate_and_input.weight.chunk(2))
        self.output = PackedLinear(block.output.weight, None)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map `[..., D]` to `[..., D]`, and add it to the residual stream."""
        gate = _mkldnn._linear_pointwise(x, self._gate, None, "swish", [], "")
        added: Tensor = self.output(_mkldnn._linear_pointwise.binary(x, gate, self._value, None, "mul"), residual)
        return added


def _packed(weight: Tensor) -> Tensor:
    laid_out: Tensor = _mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
    return laid_out


def can_pack(weight: Tensor) -> bool:
    """Tell whether oneDNN multiplies by weights of this type on their device."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(_mkldnn._is_mkldnn_bf16_supported())
    )


def pack_linears(module: nn.Module) -> None:
    """Replace every linear layer below a module, where it can be."""
    for name, child in module.named_children():
        if isinstance(child, SwiGlu) and isinstance(child.output, nn.Linear) and can_pack(child.output.weight):
            setattr(module, name, PackedSwiGlu(child))
        elif isinstance(child, nn.Linear) and can_pack(child.weight):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            pack_linears(child)
