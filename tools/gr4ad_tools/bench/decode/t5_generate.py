"""The same task by Hugging Face `generate`: a T5 whose decoder is as wide and deep, held to live SIDs by a callback."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final, cast

import torch
from gr4ad_core.model.config import LazyArConfig
from torch import Tensor, nn

from gr4ad_tools.bench.decode.exact_search import Sid
from gr4ad_tools.bench.decode.workload import Ints

PAD: Final = 0
END: Final = 1
SPECIALS: Final = 2
"""Tokens before those of the first level."""


class MissingTransformersError(Exception):
    """The extra that brings transformers is not installed."""


class T5Generate:
    """One request at a time, `num_beams` wide at every level, over a dictionary of the live SIDs' prefixes.

    The decoder has the width, layers, heads and inner width of the model that it is compared with, and random weights.
    Its encoder has one layer over as many positions as a history has events. The callback only looks up a list of
    tokens that is ready-made; everything else is `generate`'s own.
    """

    def __init__(self, config: LazyArConfig, sids_NT: Ints, seed: int, device: str = "cpu") -> None:
        """Make the model, on a torch device, and the dictionary.

        Raises:
            MissingTransformersError: transformers is not installed.
        """
        try:
            from transformers import T5Config, T5ForConditionalGeneration  # heavy, and an optional extra
        except ImportError:
            raise MissingTransformersError(
                "transformers is not installed: install gr4ad with the extra 'huggingface' to measure hf_generate_ratio"
            ) from None
        t5 = T5Config(
            vocab_size=SPECIALS + sum(config.level_sizes),
            d_model=config.d_model,
            d_kv=config.d_model // config.n_heads,
            d_ff=config.d_ff,
            num_heads=config.n_heads,
            num_layers=config.n_layers,
            dropout_rate=0.0,
            pad_token_id=PAD,
            eos_token_id=END,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = T5ForConditionalGeneration(t5)
        self._model = cast(Any, model.eval())
        # The cache takes its length from the encoder's number of layers, so the encoder is cut after it is made.
        self._model.encoder.block = self._model.encoder.block[:1]
        self._model.to(device)
        self._n_levels = config.n_levels
        starts = [SPECIALS + sum(config.level_sizes[:level]) for level in range(config.n_levels)]
        self._starts_T = torch.tensor(starts, device=device)
        allowed: defaultdict[Sid, set[int]] = defaultdict(set)
        for tokens in map(tuple, (sids_NT + starts).tolist()):
            for level, token in enumerate(tokens):
                allowed[tokens[:level]].add(token)
        self._allowed = {prefix: sorted(tokens) for prefix, tokens in allowed.items()}

    def prompt(self, sids_ST: Tensor) -> Tensor:
        """Return a request's history as tokens, `[1, S]`: the first code of every event."""
        return (sids_ST[None, :, 0] + self._starts_T[0]).contiguous()

    @torch.inference_mode()
    def generate(self, prompt_1S: Tensor, beams: int) -> Tensor:
        """Return the SIDs of the best beams, `[beams, T]`, the best first."""
        tokens_WT: Tensor = self._model.generate(
            prompt_1S,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=self._n_levels,
            decoder_start_token_id=PAD,
            do_sample=False,
            prefix_allowed_tokens_fn=lambda _, tokens: self._allowed.get(tuple(tokens.tolist()[1:]), [END]),
        )
        return tokens_WT[:, 1:] - self._starts_T
