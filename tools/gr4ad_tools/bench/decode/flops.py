"""How much arithmetic of matrix products one decoded batch is: a pure function of the model's shape and the plan."""

from __future__ import annotations

from gr4ad_core.model.config import LazyArConfig


def decode_flops(config: LazyArConfig, batch: int, events: int, widths: tuple[int, ...]) -> int:
    """Count the floating-point operations of all matrix products from histories to SIDs, a multiply-add as two.

    Counted are the context processor's projections, the trunk, the fusion's product with the state, the autoregressive
    layers, both products of the attention to the context, and the heads over full vocabularies. Not counted are sums
    and products by element, among them the attention to a beam's own path of a handful of positions, norms, softmax,
    sorting, and the eCPM step.

    Args:
        config: Shape of the model.
        batch: Requests B.
        events: Events of each request; the context is one vector longer.
        widths: Beams kept at each level, all of them filled.
    """
    d = config.d_model
    context = events + 1
    processor = events * config.n_levels * d * d + context * d * 2 * config.kv_groups * d
    # The query's two projections, both products of the attention, and three matrices of the gated block.
    parallel = 2 * d * d + 2 * context * d + 3 * d * config.d_ff
    trunk = (config.n_levels + 1) * config.n_lazy * parallel
    causal = 4 * d * d + parallel
    fuse = d * d  # what depends on the token alone is looked up
    beams = (1, *widths[:-1])
    decoder = sum(beams) * (fuse + (config.n_layers - config.n_lazy) * causal)
    heads = sum(width * size * d for width, size in zip(beams, config.level_sizes, strict=True))
    return 2 * batch * (processor + trunk + decoder + heads)
