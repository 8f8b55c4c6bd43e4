"""VSL against its loop-form oracle, and its configuration."""

from __future__ import annotations

import pytest
import torch
from gr4ad_core.learning.vsl import VslConfig, vsl_loss
from gr4ad_core.model.lazy_ar import TokenOutputs
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import vsl_loop

SIZES = (7, 5, 3)


def random_outputs(batch: int, buckets: int, lazy: bool, seed: int) -> TokenOutputs:
    torch.manual_seed(seed)

    def logits(size: int) -> torch.Tensor:
        return (3.0 * torch.randn(batch, size, dtype=torch.float64)).requires_grad_()

    return TokenOutputs(
        level_logits=[logits(v) for v in SIZES],
        ecpm_logits=logits(buckets),
        mtp_level_logits=[logits(v) for v in SIZES] if lazy else [],
        mtp_ecpm_logits=logits(buckets) if lazy else None,
    )


@given(
    batch=st.integers(1, 6),
    buckets=st.integers(1, 4),
    lazy=st.booleans(),
    lambda_e=st.floats(0, 2),
    lambda_mtp=st.floats(0, 2),
    smoothing=st.floats(0, 0.5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_loss_equals_its_loop_form(batch, buckets, lazy, lambda_e, lambda_mtp, smoothing, seed):
    outputs = random_outputs(batch, buckets, lazy, seed)
    sids_BT = torch.stack([torch.randint(v, (batch,)) for v in SIZES], dim=1)
    bucket_B = torch.randint(buckets, (batch,))
    weight_B = torch.rand(batch, dtype=torch.float64) * 3
    config = VslConfig(ecpm_loss_weight=lambda_e, mtp_loss_weight=lambda_mtp, business_smoothing=smoothing)

    loss, _ = vsl_loss(outputs, sids_BT, bucket_B, weight_B, config)

    expected = vsl_loop.vsl(
        [x.tolist() for x in outputs.level_logits],
        outputs.ecpm_logits.tolist(),
        [x.tolist() for x in outputs.mtp_level_logits],
        None if outputs.mtp_ecpm_logits is None else outputs.mtp_ecpm_logits.tolist(),
        sids_BT.tolist(),
        bucket_B.tolist(),
        weight_B.tolist(),
        lambda_e,
        lambda_mtp,
        smoothing,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_weight_scales_the_decoder_gradient_of_its_sample_but_not_the_trunk_loss():
    outputs = random_outputs(2, 3, lazy=True, seed=0)
    sids_BT, bucket_B = torch.tensor([[1, 2, 0], [1, 2, 0]]), torch.tensor([0, 0])
    for x in (*outputs.level_logits, *outputs.mtp_level_logits):
        with torch.no_grad():
            x[1] = x[0]
    loss, metrics = vsl_loss(outputs, sids_BT, bucket_B, torch.tensor([1.0, 3.0], dtype=torch.float64), VslConfig())
    loss.backward()
    decoder, trunk = outputs.level_logits[0].grad, outputs.mtp_level_logits[0].grad
    torch.testing.assert_close(decoder[1], 3.0 * decoder[0])
    torch.testing.assert_close(trunk[1], trunk[0])
    assert set(metrics) == {"sid_loss", "ecpm_loss", "mtp_loss"}
    assert not any(value.requires_grad for value in metrics.values())


def test_ordinary_decoder_has_no_trunk_loss():
    outputs = random_outputs(3, 2, lazy=False, seed=1)
    target = torch.zeros(3, 3, dtype=torch.int64)
    weight = torch.ones(3, dtype=torch.float64)
    losses = [
        vsl_loss(outputs, target, target[:, 0], weight, VslConfig(mtp_loss_weight=share))[0].item()
        for share in (0.0, 1.0)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rate", -1e-3),
        ("mtp_loss_weight", -0.1),
        ("business_smoothing", 1.5),
        ("impression_share", -0.1),
        ("behavior_weights", (1.0, 1.0)),
        ("validation_beams", ()),
    ],
)
def test_config_refuses_a_field_out_of_range(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: .*give"):
        VslConfig(**{field: value})
