"""RQ-VAE, the learned baseline: it quantises residuals, learns to reconstruct, and leaves few codes unused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gr4ad_tools.bench import rq_vae
from gr4ad_tools.bench.ad_vectors import generated_catalogue
from gr4ad_tools.bench.rq_vae import RqVae, fit_rq_vae

SIZES = (16, 8)


def test_codes_are_the_nearest_to_what_the_levels_before_left() -> None:
    torch.manual_seed(0)
    model = RqVae(12, SIZES)
    latents = torch.randn(30, model.codes[0].shape[1])
    codes, residuals, vectors = model.quantise(latents)
    for row in range(30):
        left = latents[row]
        for level, table in enumerate(model.codes):
            torch.testing.assert_close(residuals[level][row], left, atol=1e-5, rtol=1e-5)
            assert codes[row, level] == (table - left).norm(dim=-1).argmin()
            torch.testing.assert_close(vectors[level][row], table[codes[row, level]])
            left = left - table[codes[row, level]]


def test_the_gradient_reaches_encoder_decoder_and_used_codes() -> None:
    torch.manual_seed(0)
    model = RqVae(12, SIZES)
    loss, codes = model.loss(torch.randn(64, 12))
    loss.backward()
    for weight in (*model.encoder.parameters(), *model.decoder.parameters()):
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
    for level, table in enumerate(model.codes):
        touched = table.grad.abs().sum(-1) > 0
        assert set(torch.nonzero(touched)[:, 0].tolist()) <= set(codes[:, level].tolist())
        assert touched.any()


def test_training_learns_to_reconstruct_and_uses_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rq_vae, "BATCH", 256)
    vectors = generated_catalogue(3_000, seed=0, dim=16).vectors_ND
    x = torch.from_numpy(vectors)

    def error(model: RqVae) -> float:
        _, _, found = model.quantise(model.encoder(x))
        return (x - model.decoder(torch.stack(found).sum(0))).square().sum(-1).mean().item()

    untrained, model = (fit_rq_vae(vectors, SIZES, seed=0, steps=steps) for steps in (1, 150))
    with torch.no_grad():
        assert error(model) < 0.8 * error(untrained)
    sids = model.sids(vectors)
    assert len(np.unique(sids[:, 0])) > 8
    np.testing.assert_array_equal(fit_rq_vae(vectors, SIZES, seed=0, steps=150).sids(vectors), sids)
