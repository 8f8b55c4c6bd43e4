"""The shape of a LazyAR model, free of torch so that manifests and planners can read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_args

ComputeType = Literal["float32", "bfloat16", "int8"]
"""What a served policy's layers can compute in, by names of torch's."""
COMPUTE_TYPES: Final[tuple[str, ...]] = get_args(ComputeType)


@dataclass(frozen=True, kw_only=True)
class LazyArConfig:
    """Describes a LazyAR decoder and its context processor (method.md §2)."""

    level_sizes: tuple[int, ...]
    """Codebook size V_t of every SID level, coarse to fine; its length is T."""
    d_model: int = 128
    """Model width d."""
    n_heads: int = 4
    """Attention heads H; divides `d_model`."""
    n_layers: int = 6
    """Decoder layers L, the lazy ones included."""
    n_lazy: int = 4
    """Parallel trunk layers K, computed once per request; 0 is the ordinary decoder."""
    d_ff: int = 256
    """Inner width of the gated feed-forward blocks."""
    kv_groups: int = 2
    """Groups of consecutive layers that share one set of cross-attention keys and values; at most `n_layers`."""
    max_history: int = 50
    """Events of a user that the model reads, the latest ones."""
    n_item_buckets: int = 0
    """Hashed embeddings of whole SIDs, added to the merged tokens of an event; 0 leaves them out."""
    n_feature_buckets: int = 1024
    """Hashed embeddings of `name=value` user and request features."""
    n_ecpm_buckets: int = 16
    """Value buckets that the eCPM token distinguishes."""
    dropout: float = 0.1
    """Share of activations dropped in training, after the embeddings and on each residual branch."""
    tied_heads: bool = False
    """Whether the level heads use the token embeddings as their weights."""

    def __post_init__(self) -> None:
        """Check that the numbers make a model.

        Raises:
            ValueError: A field is out of its range or contradicts another one.
        """
        if not self.level_sizes or min(self.level_sizes) < 1:
            raise ValueError(f"level_sizes: {self.level_sizes}: give one positive codebook size per SID level")
        for name in ("d_model", "n_heads", "n_layers", "d_ff", "kv_groups", "max_history", "n_ecpm_buckets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}: give a positive number")
        for name in ("n_item_buckets", "n_feature_buckets"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}: give 0 to leave it out, or a positive number")
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads}: give a divisor of d_model {self.d_model}")
        if not 0 <= self.n_lazy < self.n_layers:
            raise ValueError(f"n_lazy: {self.n_lazy}: give 0 to {self.n_layers - 1}, fewer than n_layers")
        if self.kv_groups > self.n_layers:
            raise ValueError(f"kv_groups: {self.kv_groups}: give at most n_layers {self.n_layers}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: {self.dropout}: give a share from 0 to below 1")

    @property
    def n_levels(self) -> int:
        """SID levels T."""
        return len(self.level_sizes)

    def kv_group(self, layer: int) -> int:
        """Return the group whose keys and values layer `layer` (from 0) reads."""
        return layer * self.kv_groups // self.n_layers

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "level_sizes": list(self.level_sizes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LazyArConfig:
        """Build a config from what `to_dict` returned.

        Raises:
            ValueError: A field is unknown, missing or out of range.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"model config: {', '.join(unknown)}: unknown, load it with the version that wrote it")
        if "level_sizes" not in values:
            raise ValueError("level_sizes: missing from the model config: give one codebook size per SID level")
        return cls(**{**values, "level_sizes": tuple(values["level_sizes"])})
