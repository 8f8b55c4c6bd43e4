"""Compiled layers: the same answers for any number of requests and beams, and no compiling once a server serves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.fx.experimental._config as fx_config
from gr4ad_core.decoding.beam_search import beam_search, expected_ecpm_of_beams
from gr4ad_core.decoding.constraints import TorchTrie
from gr4ad_core.model import lazy_ar
from gr4ad_core.model.compiled_layers import can_compile, compile_layers, stop_compiling
from gr4ad_core.model.context import collate_contexts
from gr4ad_core.model.history import UserHistory
from gr4ad_core.model.lazy_ar import LazyAr
from gr4ad_core.sid.trie import LiveTrie
from torch import Tensor
from torch._dynamo.utils import counters

from tests.oracles.plain_decoder_cases import CONFIGS, random_history, random_model, random_sids

CUDA = torch.device("cuda")
CONFIG = replace(CONFIGS["two_levels_item_hash"], n_layers=4, n_lazy=2)
FORMS_OF_A_BATCH = 1 + 2 * (CONFIG.n_levels + 1)
"""A trunk layer, and the two parts of an autoregressive one at each position, for all layers together."""


class Compiled:
    """A model served with compiled layers, beside itself as it was trained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
        """Serve it as a GPU would have it: no processor's layout, and layers that are compiled."""
        self.graphs = 0
        monkeypatch.setattr(lazy_ar, "can_compile", lambda device: True)
        monkeypatch.setattr(lazy_ar, "pack_linears", lambda module: None)
        monkeypatch.setattr(lazy_ar, "compile_layers", partial(compile_layers, backend=backend))
        self.rng = np.random.default_rng(0)
        self.trained = random_model(CONFIG)
        self.served = copy.deepcopy(self.trained).for_serving()
        sids = random_sids(CONFIG, 30, self.rng)
        self.trie = TorchTrie.from_view(LiveTrie.build(sids, CONFIG.level_sizes).view, "cpu")

    def check(self, requests: int, widths: tuple[int, ...], wanted: int = 2) -> None:
        """Expect of the compiled layers what the others answer."""
        histories = [random_history(CONFIG, n, self.rng) for n in self.rng.integers(0, 7, requests)]
        for found, expected in zip(*(self._answer(m, histories, widths, wanted) for m in self._models), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    @property
    def _models(self) -> tuple[LazyAr, LazyAr]:
        return self.served, self.trained

    @torch.inference_mode()
    def _answer(
        self, model: LazyAr, histories: list[UserHistory], widths: tuple[int, ...], wanted: int
    ) -> tuple[Tensor, Tensor]:
        context = model.encode_context(collate_contexts(histories, model.config))
        result = beam_search(model, context, self.trie, widths)
        best_BN = torch.arange(wanted).expand(len(histories), -1)
        return result.log_probs_BW, expected_ecpm_of_beams(model, context, result, best_BN)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with fx_config.patch(use_duck_shape=True):  # as it is; what sets it is undone
        yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def graphs() -> int:
    """How many graphs were compiled since the last reset."""
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("inductor", marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_compiled_layers_answer_alike_and_serve_without_compiling(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Compiled(monkeypatch, backend)
    before = graphs()
    compiled.check(3, (4, 9))
    assert 0 < graphs() - before <= FORMS_OF_A_BATCH
    compiled.check(1, (4, 9))
    forms = graphs()
    compiled.check(2, (3, 11))
    compiled.check(5, (5, 6), wanted=3)
    assert graphs() == forms

    stop_compiling()
    compiled.check(1, (1, 1), wanted=1)
    compiled.check(4, (1, 6))
    compiled.check(4, (4, 9))
    assert graphs() == forms


def test_a_gpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "gcc"
    compiler.touch(mode=0o755)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert can_compile(CUDA)
    assert not can_compile(torch.device("cpu"))
    compiler.unlink()
    assert not can_compile(CUDA)
    own = tmp_path / "own"
    own.touch(mode=0o755)
    monkeypatch.setenv("CC", str(own))
    assert can_compile(CUDA)
