from typing import Any

import pytest
from gr4ad_core.model.config import LazyArConfig


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"level_sizes": ()}, r"level_sizes: \(\): give one positive codebook size"),
        ({"level_sizes": (4, 0)}, r"level_sizes: \(4, 0\)"),
        ({"n_heads": 3}, r"n_heads: 3: give a divisor of d_model 128"),
        ({"n_lazy": 6}, r"n_lazy: 6: give 0 to 5"),
        ({"kv_groups": 7}, r"kv_groups: 7: give at most n_layers 6"),
        ({"dropout": 1.0}, r"dropout: 1\.0: give a share from 0 to below 1"),
        ({"max_history": 0}, r"max_history: 0: give a positive number"),
        ({"n_item_buckets": -1}, r"n_item_buckets: -1: give 0 to leave it out"),
    ],
)
def test_refuses_numbers_that_make_no_model(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LazyArConfig(**{"level_sizes": (4, 4), **changed})


def test_refuses_a_stored_config_that_it_does_not_know() -> None:
    values = LazyArConfig(level_sizes=(4, 4)).to_dict()
    with pytest.raises(ValueError, match="n_wings: unknown"):
        LazyArConfig.from_dict({**values, "n_wings": 2})
    del values["level_sizes"]
    with pytest.raises(ValueError, match="level_sizes: missing"):
        LazyArConfig.from_dict(values)
