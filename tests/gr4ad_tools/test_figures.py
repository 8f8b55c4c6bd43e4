"""Figures carry their observations, and files of figures are never half-written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from gr4ad_tools.figures import Figure, document, mean, percentile, write_json


def test_a_percentile_is_an_observation_and_says_how_many_there_were() -> None:
    assert percentile([5.0, 1.0, 3.0], 50, "ms") == Figure(3.0, "ms", 3, 1.0, 5.0)
    assert percentile(list(range(1, 101)), 99, "ms").value == 100.0
    assert math.isnan(percentile([], 99, "ms").value)


def test_a_mean_of_nothing_is_not_zero() -> None:
    assert mean([1.0, 2.0]).value == 1.5
    assert math.isnan(mean([]).value)


def test_the_document_has_the_form_that_readers_expect(tmp_path: Path) -> None:
    found = document({"p99_ms": percentile([1.0, 2.0], 99, "ms")}, "gr4ad traffic", 7)
    write_json(tmp_path / "summary.json", found)
    read = json.loads((tmp_path / "summary.json").read_text())
    assert read["figures"]["p99_ms"] == {"value": 2.0, "unit": "ms", "n": 2, "min": 1.0, "max": 2.0}
    assert set(read["machine"]) == {"cpus", "gemm_gflops_f32", "gemm_gflops_bf16", "device"}
    assert read["machine"]["gemm_gflops_f32"] > 0
    assert (read["command"], read["seed"]) == ("gr4ad traffic", 7)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
