"""Linear layers that multiply in int8, for processors: what a served policy may compute with (method.md §4).

Shapes: R rows, I inputs, O outputs of a layer.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

LARGEST: Final = 127
"""The largest rounded value; −128 is left out, so that one scale serves both signs."""


class Int8Linear(nn.Module):
    """Takes the place of an `nn.Linear` that is not trained any more; its weights have a scale for each output.

    States are rounded as they come, with a scale for each row, so that no request's answer depends on its batch. Sums
    of products are exact, in int32.
    """

    weight_IO: Tensor
    scale_O: Tensor
    bias_O: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        """Round the weights of a layer, which stays as it is."""
        super().__init__()
        weight_OI, scale_O1 = round_rows(linear.weight.detach())
        self.register_buffer("weight_IO", weight_OI.t().contiguous())
        self.register_buffer("scale_O", scale_O1[:, 0])
        self.register_buffer("bias_O", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map `[..., I]` to `[..., O]`, plus a residual `[..., O]` where one is given, rounded once to x's type."""
        x_RI, scale_R1 = round_rows(x.reshape(-1, x.shape[-1]))
        y_RO = torch._int_mm(x_RI, self.weight_IO).float().mul_(self.scale_O).mul_(scale_R1)
        if self.bias_O is not None:
            y_RO += self.bias_O
        if residual is not None:
            y_RO += residual.reshape(y_RO.shape)
        return y_RO.to(x.dtype).view(*x.shape[:-1], len(self.scale_O))


def round_rows(x_RI: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8; return that and what leads back, a float32 scale `[R, 1]`: `x ≈ rounded · scale`."""
    x_RI = x_RI.float()
    scale_R1 = (x_RI.abs().amax(-1, keepdim=True) / LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
    return (x_RI / scale_R1).round_().to(torch.int8), scale_R1


def round_linears(module: nn.Module) -> None:
    """Replace every linear layer below a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            round_linears(child)
