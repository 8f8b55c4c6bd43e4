"""The search against the naive one, and what must hold of any search."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from gr4ad_core.decoding.beam_search import BeamResult, beam_search, expected_ecpm, expected_ecpm_of_beams
from gr4ad_core.decoding.constraints import TorchTrie
from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.context import collate_contexts
from gr4ad_core.model.history import UserHistory
from gr4ad_core.model.lazy_ar import Context, LazyAr
from gr4ad_core.sid.trie import LiveTrie
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.oracles.brute_force_trie import BruteForceTrie
from tests.oracles.naive_beam import naive_beam_search
from tests.oracles.plain_decoder import PlainDecoder
from tests.oracles.plain_decoder_cases import CONFIGS, THREE_LEVELS, random_history, random_model, random_sids

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine or this torch build has no CUDA"),
    ),
]


@dataclass(frozen=True)
class Market:
    """A model, some users and what is live."""

    model: LazyAr
    histories: list[UserHistory]
    sids: np.ndarray
    trie: TorchTrie

    @property
    def config(self) -> LazyArConfig:
        """Shape of the model."""
        return self.model.config

    @torch.inference_mode()
    def context(self) -> Context:
        """Context of all users."""
        return self.model.encode_context(collate_contexts(self.histories, self.config).to(self.model.device))

    def search(self, widths: tuple[int, ...]) -> BeamResult:
        """Search for all users."""
        return beam_search(self.model, self.context(), self.trie, widths)


def market(
    config: LazyArConfig = THREE_LEVELS,
    n_sids: int = 60,
    lengths: tuple[int, ...] = (0, 1, 8, 3),
    seed: int = 0,
    device: str = "cpu",
) -> Market:
    """Draw a market."""
    rng = np.random.default_rng(seed)
    sids = random_sids(config, n_sids, rng)
    return Market(
        model=random_model(config, seed).to(device),
        histories=[random_history(config, n, rng) for n in lengths],
        sids=sids,
        trie=TorchTrie.from_view(LiveTrie.build(sids, config.level_sizes).view, device),
    )


def found(result: BeamResult, row: int) -> list[tuple[int, ...]]:
    """Return the valid SIDs of a request, in order."""
    return [tuple(sid) for sid in result.sids_BWT[row][result.valid_BW[row]].tolist()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CONFIGS.keys())
def test_finds_what_the_naive_search_finds(name: str, device: str) -> None:
    config = CONFIGS[name]
    n_sids = min(60, int(np.prod(config.level_sizes)))
    m = market(config, n_sids, device=device)
    widths = {2: (3, 6), 3: (4, 6, 9), 4: (2, 3, 4, 6)}[config.n_levels]

    result = m.search(widths)

    decoder, oracle = PlainDecoder(m.model), BruteForceTrie(m.sids)
    for row, history in enumerate(m.histories):
        expected = naive_beam_search(decoder, history, oracle, widths)
        assert set(found(result, row)) == {sid for sid, _ in expected}
        slots = result.slots_BW[row][result.valid_BW[row]].tolist()
        assert [tuple(m.sids[slot]) for slot in slots] == found(result, row)
        assert (result.slots_BW[row][~result.valid_BW[row]] == -1).all()
        log_probs = dict(zip(found(result, row), result.log_probs_BW[row].tolist(), strict=False))
        for sid, log_prob in expected:
            assert log_probs[sid] == pytest.approx(log_prob, abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["lazy", "ordinary", "one value bucket"])
def test_expected_ecpm_is_the_plain_decoders(name: str, device: str) -> None:
    one_value = replace(CONFIGS["lazy"], n_ecpm_buckets=1)
    m = market(CONFIGS.get(name, one_value), device=device)
    result = m.search((4, 6, 5))
    assert result.valid_BW.all()
    picked_BN = torch.tensor([[0, 2], [4, 1], [3, 3], [1, 0]], device=device)
    sids_BNT = result.sids_BWT.gather(1, picked_BN[..., None].expand(-1, -1, 3))

    of_sids = expected_ecpm(m.model, m.context(), sids_BNT)
    of_beams = expected_ecpm_of_beams(m.model, m.context(), result, picked_BN)
    again = expected_ecpm_of_beams(m.model, m.context(), result, picked_BN.flip(1)).flip(1)

    decoder = PlainDecoder(m.model)
    expected = [
        [decoder.expected_ecpm(history, tuple(sid)) for sid in sids]
        for history, sids in zip(m.histories, sids_BNT.tolist(), strict=True)
    ]
    for values in (of_sids, of_beams, again):
        torch.testing.assert_close(
            values.double().cpu(), torch.tensor(expected, dtype=torch.float64), atol=1.0, rtol=1e-4
        )


@pytest.mark.parametrize("device", DEVICES)
def test_log_probs_are_the_teacher_forced_ones(device: str) -> None:
    m = market(n_sids=150, device=device)
    result = m.search((5, 9, 20))
    with torch.inference_mode():
        forced_BW = m.model.sid_log_probs(m.context(), result.sids_BWT)
    torch.testing.assert_close(result.log_probs_BW, forced_BW, atol=1e-4, rtol=1e-4)


def test_wide_beams_rank_the_whole_catalogue() -> None:
    m = market(n_sids=80)
    result = m.search((7, 35, 80))
    with torch.inference_mode():
        everything = torch.from_numpy(m.sids).expand(len(m.histories), -1, -1)
        forced_BN = m.model.sid_log_probs(m.context(), everything)
    torch.testing.assert_close(result.log_probs_BW, forced_BN.sort(descending=True).values, atol=1e-4, rtol=1e-4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    n_sids=st.integers(0, 36),
    lengths=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    data=st.data(),
)
def test_what_holds_of_every_search(name: str, n_sids: int, lengths: list[int], data: st.DataObject) -> None:
    config = CONFIGS[name]
    widths = data.draw(st.tuples(*(st.integers(1, 30) for _ in config.level_sizes)))
    m = market(config, n_sids, tuple(lengths), seed=data.draw(st.integers(0, 3)))

    result = m.search(widths)

    live = {tuple(sid) for sid in m.sids.tolist()}
    assert result.sids_BWT.shape == (len(lengths), widths[-1], config.n_levels)
    assert len(result.level_us) == config.n_levels
    for row in range(len(lengths)):
        sids = found(result, row)
        assert set(sids) <= live, "only live ads"
        assert len(set(sids)) == len(sids), "none twice"
        assert len(sids) <= widths[-1], "no more than the width"
        assert len(sids) >= min(1, n_sids), "something, where something is live"
        for level, width in enumerate(widths):
            assert len({sid[: level + 1] for sid in sids}) <= width, "each level kept its width"
        valid = result.valid_BW[row].tolist()
        assert valid == sorted(valid, reverse=True), "valid ones first"
        log_probs = result.log_probs_BW[row].tolist()
        assert log_probs == sorted(log_probs, reverse=True), "best first"
        assert all(np.isfinite(p) == v for p, v in zip(log_probs, valid, strict=True))
        assert (result.sids_BWT[row][~result.valid_BW[row]] == -1).all()


def test_a_paused_ad_is_never_returned_and_its_place_is_filled() -> None:
    m = market()
    before = m.search((7, 20, 12))
    paused = found(before, 2)[0]
    still_live = m.sids[(m.sids != paused).any(axis=1)]
    trie = TorchTrie.from_view(LiveTrie.build(still_live, m.config.level_sizes).view, "cpu")

    after = beam_search(m.model, m.context(), trie, (7, 20, 12))

    assert all(paused not in found(after, row) for row in range(len(m.histories)))
    assert found(after, 2)[:11] == found(before, 2)[1:]
    # Normalised over the vocabulary, not over what is live: the others' log-probabilities stay what they were.
    torch.testing.assert_close(after.log_probs_BW[2, :11], before.log_probs_BW[2, 1:], atol=1e-5, rtol=1e-5)


def test_a_request_does_not_depend_on_the_batch_around_it() -> None:
    m = market(lengths=(5, 0, 8, 2))
    together = m.search((4, 6, 9))
    for row, history in enumerate(m.histories):
        alone = replace(m, histories=[history]).search((4, 6, 9))
        assert found(alone, 0) == found(together, row)
        torch.testing.assert_close(alone.log_probs_BW[0], together.log_probs_BW[row], atol=1e-5, rtol=1e-5)


def test_a_skewed_trie_needs_no_more_than_its_widest_node_in_the_beam() -> None:
    config = replace(THREE_LEVELS, level_sizes=(4, 40, 40))
    rng = np.random.default_rng(0)
    crowded = np.stack([np.zeros(300, np.int64), *rng.integers(0, 40, (2, 300))], axis=1)
    sids = np.unique(np.concatenate([crowded, [[1, 0, 0], [2, 5, 5], [3, 9, 9]]]), axis=0)
    m = market(config)
    m = replace(m, sids=sids, trie=TorchTrie.from_view(LiveTrie.build(sids, config.level_sizes).view, "cpu"))

    result = m.search((4, 6, 10))

    decoder, oracle = PlainDecoder(m.model), BruteForceTrie(sids)
    for row, history in enumerate(m.histories):
        expected = naive_beam_search(decoder, history, oracle, (4, 6, 10))
        assert found(result, row) == [sid for sid, _ in expected]


def test_empty_trie_returns_nothing() -> None:
    m = market(n_sids=0)
    result = m.search((2, 2, 3))
    assert not result.valid_BW.any()
    assert (result.sids_BWT == -1).all()
    assert expected_ecpm_of_beams(m.model, m.context(), result, torch.zeros(4, 2, dtype=torch.int64)).shape == (4, 2)


def test_refuses_a_model_in_training_mode() -> None:
    m = market()
    m.model.train()
    with pytest.raises(ValueError, match=r"model: in training mode: call model\.eval\(\) before a search"):
        m.search((2, 2, 2))


def test_refuses_widths_or_a_trie_of_another_shape() -> None:
    m = market()
    for widths in ((4, 4), (4, 0, 4)):
        with pytest.raises(ValueError, match=r"widths: \(4, .*: give a positive width for each of the 3 levels"):
            m.search(widths)
    flat = TorchTrie.from_view(LiveTrie.build(np.array([[1, 2]]), (7, 5)).view, "cpu")
    with pytest.raises(ValueError, match="trie: 2 levels: build it for the 3 levels of the model"):
        beam_search(m.model, m.context(), flat, (4, 4, 4))
