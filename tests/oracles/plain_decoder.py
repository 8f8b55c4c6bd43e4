"""LazyAR for one request and one prefix at a time, from the weights by name: no batch, no padding, no cache, no shared
work. Every call starts from the history again (method.md §2)."""

from __future__ import annotations

import torch
from gr4ad_core.model.history import UserHistory
from gr4ad_core.model.lazy_ar import LazyAr
from torch import Tensor

from tests.oracles.naive_context import naive_events, naive_feature_ids, naive_sid_hash


class PlainDecoder:
    """Runs the forward pass of a model's weights in float64, one vector after another."""

    def __init__(self, model: LazyAr) -> None:
        """Copy the weights."""
        self.config = model.config
        self.w = {name: value.detach().cpu().double() for name, value in model.state_dict().items()}

    # --- pieces -------------------------------------------------------------------------------------------------------

    def token(self, level: int, code: int) -> Tensor:
        """Embedding of one code of a level (from 0)."""
        return self.w["sid_embedding.table.weight"][sum(self.config.level_sizes[:level]) + code]

    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        """Root-mean-square normalisation of one vector."""
        eps = torch.finfo(torch.float32).eps  # what torch uses for float32 weights
        return x / (x.square().mean() + eps).sqrt() * self.w[f"{name}.weight"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Matrix times one vector."""
        y = self.w[f"{name}.weight"] @ x
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def attend(self, q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """One query over a list of keys, head by head."""
        width = self.config.d_model // self.config.n_heads
        heads = []
        for h in range(self.config.n_heads):
            part = slice(h * width, (h + 1) * width)
            scores = torch.stack([q[part] @ k[part] for k in keys]) / width**0.5
            weights = scores.softmax(0)
            heads.append(sum(weight * v[part] for weight, v in zip(weights, values, strict=True)))
        return torch.cat(heads)

    # --- context ------------------------------------------------------------------------------------------------------

    def context_vectors(self, history: UserHistory) -> list[Tensor]:
        """X: the resting place, features, events from the latest on."""
        x = [self.w["context_processor.resting_place"]]
        x += [self.w["context_processor.feature.weight"][i] for i in naive_feature_ids(history, self.config)]
        for event in naive_events(history, self.config):
            tokens = torch.cat([self.token(level, code) for level, code in enumerate(event.codes)])
            h = self.linear(tokens, "context_processor.token_merger")
            h = h + self.w["context_processor.behavior.weight"][event.behavior]
            h = h + self.w["context_processor.gap.weight"][event.gap_bucket]
            h = h + self.w["context_processor.recency.weight"][event.recency]
            if self.config.n_item_buckets:
                bucket = naive_sid_hash(event.codes, self.config.n_item_buckets)
                h = h + self.w["context_processor.item.weight"][bucket]
            x.append(h)
        return x

    def keys_values(self, history: UserHistory, group: int) -> tuple[list[Tensor], list[Tensor]]:
        """Normalised projections of X for a group of layers."""
        d, groups, heads = self.config.d_model, self.config.kv_groups, self.config.n_heads
        keys, values = [], []
        for x in self.context_vectors(history):
            projected = self.linear(self.rms_norm(x, "context_processor.norm"), "context_processor.keys_values")
            k, v = projected[group * d : (group + 1) * d], projected[(groups + group) * d : (groups + group + 1) * d]
            keys.append(torch.cat([self.rms_norm(p, f"context_processor.key_norms.{group}") for p in k.chunk(heads)]))
            values.append(
                torch.cat([self.rms_norm(p, f"context_processor.value_norms.{group}") for p in v.chunk(heads)])
            )
        return keys, values

    # --- layers -------------------------------------------------------------------------------------------------------

    def parallel_layer(self, x: Tensor, name: str, layer: int, history: UserHistory) -> Tensor:
        """Cross-attention and feed-forward on one position."""
        keys, values = self.keys_values(history, layer * self.config.kv_groups // self.config.n_layers)
        q = self.linear(self.rms_norm(x, f"{name}.cross_norm"), f"{name}.cross_attention.query")
        x = x + self.linear(self.attend(q, keys, values), f"{name}.cross_attention.output")
        y = self.linear(self.rms_norm(x, f"{name}.feed_forward_norm"), f"{name}.feed_forward.gate_and_input")
        gate, value = y[: self.config.d_ff], y[self.config.d_ff :]
        return x + self.linear(gate * gate.sigmoid() * value, f"{name}.feed_forward.output")

    def trunk_state(self, history: UserHistory, position: int) -> Tensor:
        """m^(K) of one position."""
        m = self.w["position"][position]
        for layer in range(self.config.n_lazy):
            m = self.parallel_layer(m, f"trunk.{layer}", layer, history)
        return self.rms_norm(m, "trunk_norm")

    def states(self, history: UserHistory, prefix: tuple[int, ...]) -> list[Tensor]:
        """Final state of every position 0 … len(prefix)."""
        xs = []
        for position in range(len(prefix) + 1):
            m = self.trunk_state(history, position)
            s = self.w["bos"] if position == 0 else self.token(position - 1, prefix[position - 1])
            xs.append(self.linear(torch.cat([m * self.linear(s, "fuse.gate"), s]), "fuse.output"))
        for index in range(self.config.n_layers - self.config.n_lazy):
            name, d = f"decoder.{index}", self.config.d_model
            qkv = [
                self.linear(self.rms_norm(x, f"{name}.level_norm"), f"{name}.level_attention.query_key_value")
                for x in xs
            ]
            new = []
            for position, x in enumerate(xs):
                past = qkv[: position + 1]
                read = self.attend(qkv[position][:d], [p[d : 2 * d] for p in past], [p[2 * d :] for p in past])
                x = x + self.linear(read, f"{name}.level_attention.output")
                new.append(self.parallel_layer(x, f"{name}.parallel", self.config.n_lazy + index, history))
            xs = new
        return [self.rms_norm(x, "final_norm") for x in xs]

    # --- answers ------------------------------------------------------------------------------------------------------

    def next_log_probs(self, history: UserHistory, prefix: tuple[int, ...]) -> Tensor:
        """log p(s_(t+1) | prefix, X) over the full vocabulary of the next level."""
        return self.level_logits(self.states(history, prefix)[-1], len(prefix)).log_softmax(0)

    def level_logits(self, state: Tensor, level: int) -> Tensor:
        """The linear head of one level."""
        start = sum(self.config.level_sizes[:level])
        rows = slice(start, start + self.config.level_sizes[level])
        table = self.w["sid_embedding.table.weight" if self.config.tied_heads else "head.table.weight"]
        return table[rows] @ state + self.w["head_bias"][rows]

    def expected_ecpm(self, history: UserHistory, sid: tuple[int, ...]) -> float:
        """E[eCPM | y, X] in micros."""
        p = self.linear(self.states(history, sid)[-1], "ecpm_head").softmax(0)
        return float(sum(p_b * mean for p_b, mean in zip(p, self.w["ecpm_means"], strict=True)))
