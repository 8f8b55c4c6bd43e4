"""RQ-VAE: residual quantisation in the latent space of an autoencoder, as in TIGER-style tokenisers; a baseline.

    z = E(x),   r_1 = z,   e_t = nearest code of level t to r_t,   r_(t+1) = r_t − e_t,   x̂ = D( Σ_t e_t )
    L = ‖x − x̂‖² + Σ_t ( ‖sg[r_t] − e_t‖² + β ‖r_t − sg[e_t]‖² )

The gradient of x̂ passes the quantiser straight through. Codes begin at latents of the first batch, and a code that a
pass left unused begins again at one: without that, most of a level dies.
Shapes: N ads, D coordinates, H latent coordinates, T levels, V codes of a level.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

HIDDEN = (512, 256)
LATENT = 64
COMMITMENT = 0.25  # β
LEARNING_RATE = 1e-3
BATCH = 2048
STEPS = 2000
REVIVE_EVERY = 100  # steps between two looks for unused codes
CHUNK = 16_384


class RqVae(nn.Module):
    """An autoencoder with a residual quantiser between its halves."""

    def __init__(self, dim: int, level_sizes: Sequence[int]) -> None:
        """Draw the weights from torch's generator.

        Args:
            dim: Coordinates D.
            level_sizes: Codes V of each level.
        """
        super().__init__()
        widths = (dim, *HIDDEN, LATENT)
        self.encoder = _perceptron(widths)
        self.decoder = _perceptron(widths[::-1])
        self.codes = nn.ParameterList(nn.Parameter(torch.randn(size, LATENT) * 0.01) for size in level_sizes)

    def quantise(self, latent_NH: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return codes [N, T], and per level the residuals before it and the code vectors."""
        codes, residuals, vectors, residual_NH = [], [], [], latent_NH
        for table_VH in self.codes:
            code_N = torch.cdist(residual_NH.detach(), table_VH.detach()).argmin(-1)
            codes.append(code_N)
            residuals.append(residual_NH)
            vectors.append(table_VH[code_N])
            residual_NH = residual_NH - vectors[-1].detach()
        return torch.stack(codes, dim=-1), residuals, vectors

    def loss(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its codes [N, T]."""
        latent_NH = self.encoder(x_ND)
        codes_NT, residuals, vectors = self.quantise(latent_NH)
        sum_NH = torch.stack(vectors).sum(0)
        straight_NH = latent_NH + (sum_NH - latent_NH).detach()
        loss = (x_ND - self.decoder(straight_NH)).square().sum(-1).mean()
        for residual_NH, vector_NH in zip(residuals, vectors, strict=True):
            loss = loss + (residual_NH.detach() - vector_NH).square().sum(-1).mean()
            loss = loss + COMMITMENT * (residual_NH - vector_NH.detach()).square().sum(-1).mean()
        return loss, codes_NT

    @torch.no_grad()
    def sids(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the codes of vectors, int64 [N, T]."""
        parts = [
            self.quantise(self.encoder(torch.from_numpy(np.array(vectors_ND[start : start + CHUNK]))))[0].numpy()
            for start in range(0, len(vectors_ND), CHUNK)
        ]
        return np.concatenate(parts)

    @torch.no_grad()
    def restart(self, x_ND: Tensor, unused: Sequence[Tensor]) -> None:
        """Move codes to residuals of random ads: level by level, those that are marked."""
        residual_NH = self.encoder(x_ND)
        for table_VH, unused_V in zip(self.codes, unused, strict=True):
            count = int(unused_V.sum())
            table_VH[unused_V] = residual_NH[torch.randint(len(residual_NH), (count,))]
            code_N = torch.cdist(residual_NH, table_VH).argmin(-1)
            residual_NH = residual_NH - table_VH[code_N]


def fit_rq_vae(vectors_ND: NDArray[np.float32], level_sizes: Sequence[int], seed: int, steps: int = STEPS) -> RqVae:
    """Train on vectors; the same input gives the same weights on the same machine."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = RqVae(vectors_ND.shape[1], level_sizes)

    def batch() -> Tensor:
        rows = np.sort(rng.integers(len(vectors_ND), size=BATCH))
        return torch.from_numpy(np.array(vectors_ND[rows]))

    model.restart(batch(), [torch.ones(size, dtype=torch.bool) for size in level_sizes])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    used = [torch.zeros(size, dtype=torch.bool) for size in level_sizes]
    for step in range(steps):
        loss, codes_NT = model.loss(batch())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for level, used_V in enumerate(used):
            used_V[codes_NT[:, level]] = True
        if (step + 1) % REVIVE_EVERY == 0 and step + 1 < steps:
            model.restart(batch(), [~used_V for used_V in used])
            used = [torch.zeros_like(used_V) for used_V in used]
    return model.eval()


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
