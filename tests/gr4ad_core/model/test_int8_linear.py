"""Linear layers in int8: exact sums of rounded numbers, near the layer they stand for, each row by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gr4ad_core.model.int8_linear import LARGEST, Int8Linear, round_linears, round_rows
from torch import Tensor, nn

SHAPES = [(0, 16, 8), (1, 16, 8), (3, 7, 5), (5, 33, 64), (200, 256, 96)]


def layer(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias).requires_grad_(False)


def states(*shape: int) -> Tensor:
    """Rows of very different sizes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, generator=generator)
    return x * torch.exp(3 * torch.randn(*shape[:-1], 1, generator=generator))


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_sums_are_those_of_the_rounded_numbers(rows: int, inputs: int, outputs: int) -> None:
    linear, x = layer(inputs, outputs), states(rows, inputs)
    x_RI, scale_R1 = (each.numpy() for each in round_rows(x))
    weight_OI, scale_O1 = (each.numpy() for each in round_rows(linear.weight))
    sums = x_RI.astype(np.int64) @ weight_OI.astype(np.int64).T
    expected = sums * scale_O1[:, 0].astype(np.float64) * scale_R1 + linear.bias.numpy()
    np.testing.assert_allclose(
        Int8Linear(linear)(x).numpy(), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max(initial=1)
    )


def test_the_largest_sums_are_not_cut() -> None:
    inputs = 4096
    x, linear = torch.ones(2, inputs), layer(inputs, 2, bias=False)
    linear.weight.copy_(torch.stack([torch.ones(inputs), -torch.ones(inputs)]))
    torch.testing.assert_close(Int8Linear(linear)(x), torch.tensor([[inputs, -inputs]] * 2, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_within_half_a_step(dtype: torch.dtype) -> None:
    x = states(50, 96).to(dtype)
    x_RI, scale_R1 = round_rows(x)
    assert int(x_RI.abs().max()) == LARGEST
    assert ((x_RI * scale_R1 - x.float()).abs() <= 0.5001 * scale_R1).all()


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES[1:])
def test_results_are_as_near_as_rounding_allows(rows: int, inputs: int, outputs: int) -> None:
    linear, x = layer(inputs, outputs), states(rows, inputs)
    scale_R1, scale_O = round_rows(x)[1], round_rows(linear.weight)[1][:, 0]
    of_states = scale_R1 / 2 * linear.weight.abs().sum(1)
    of_weights = scale_O / 2 * (x.abs() + scale_R1 / 2).sum(1, keepdim=True)
    error = (Int8Linear(linear)(x) - linear(x)).abs()
    assert (error <= 1.001 * (of_states + of_weights)).all()
    assert float(error.mean() / linear(x).abs().mean()) < 0.02


def test_a_row_does_not_depend_on_the_others() -> None:
    rounded, x = Int8Linear(layer(64, 48)), states(4, 9, 64)
    together = rounded(x)
    assert together.shape == (4, 9, 48)
    for i in range(4):
        assert torch.equal(rounded(x[i]), together[i])
        assert torch.equal(rounded(x[i, 2]), together[i, 2])


def test_a_row_of_zeros_gives_the_bias_and_what_is_not_finite_stays_so() -> None:
    linear = layer(16, 8)
    x = torch.zeros(3, 16)
    x[1, 3], x[2, 3] = torch.nan, torch.inf
    found = Int8Linear(linear)(x)
    assert torch.equal(found[0], linear.bias)
    assert not found[1:].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_with_a_residual_is_rounded_once_to_the_type_of_the_states(dtype: torch.dtype) -> None:
    rounded = Int8Linear(layer(32, 24).to(dtype))
    x, residual = states(6, 32).to(dtype), states(6, 24).to(dtype)
    assert rounded(x).dtype == dtype
    assert torch.equal(rounded(x, residual), (residual.float() + rounded(x.float())).to(dtype))


def test_every_linear_layer_below_a_module_is_replaced() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.RMSNorm(4), nn.Linear(4, 3, bias=False)))
    round_linears(module)
    assert [type(each) for each in module.modules()] == [
        nn.Sequential, Int8Linear, nn.Sequential, nn.RMSNorm, Int8Linear,
    ]  # fmt: skip
