import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.context import collate_contexts
from gr4ad_core.model.int8_linear import Int8Linear
from gr4ad_core.model.lazy_ar import Fuse, LazyAr, TabledFuse
from gr4ad_core.model.packed_linear import PackedLinear, PackedSwiGlu, can_pack
from torch import nn

from tests.oracles.plain_decoder import PlainDecoder
from tests.oracles.plain_decoder_cases import CONFIGS, THREE_LEVELS, random_history, random_model, random_sids

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_token_is_predicted_as_the_plain_decoder_predicts_it(config: LazyArConfig) -> None:
    rng = np.random.default_rng(1)
    model = random_model(config)
    oracle = PlainDecoder(model)
    histories = [random_history(config, n, rng) for n in (0, 1, 3, config.max_history + 2)]
    sids = random_sids(config, len(histories), rng)

    with torch.no_grad():
        outputs = model.teacher_forced(collate_contexts(histories, config), torch.from_numpy(sids))

    for row, (history, sid) in enumerate(zip(histories, sids.tolist(), strict=True)):
        for level in range(config.n_levels):
            mine = outputs.level_logits[level][row].log_softmax(0).double()
            torch.testing.assert_close(mine, oracle.next_log_probs(history, tuple(sid[:level])), **CLOSE)
        value = float(outputs.ecpm_logits[row].softmax(0) @ model.ecpm_means)
        assert value == pytest.approx(oracle.expected_ecpm(history, tuple(sid)), rel=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_laid_out_for_serving_the_model_computes_the_same(config: LazyArConfig) -> None:
    rng = np.random.default_rng(7)
    model, served = random_model(config), random_model(config).for_serving()
    inputs = collate_contexts([random_history(config, n, rng) for n in (0, 3, config.max_history)], config)
    sids = torch.from_numpy(random_sids(config, 15, rng)).view(3, 5, -1)
    with torch.no_grad():
        in_training_form = model.encode_context(inputs)
        as_served = served.encode_context(inputs)
        torch.testing.assert_close(as_served.trunk_BPD, in_training_form.trunk_BPD, **CLOSE)
        torch.testing.assert_close(
            served.decode_paths(as_served, sids), model.decode_paths(in_training_form, sids), **CLOSE
        )
    packed = (PackedLinear, PackedSwiGlu)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    left = {name for name, module in served.named_modules() if isinstance(module, nn.Linear)}
    assert left == ({"ecpm_head"} if can_pack(model.bos) else linears - {"fuse.gate"})
    assert any(isinstance(module, packed) for module in served.modules()) == can_pack(model.bos)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_layers_in_bfloat16_leave_probabilities_in_float32(config: LazyArConfig) -> None:
    rng = np.random.default_rng(6)
    model, half = random_model(config), random_model(config).for_serving(torch.bfloat16)
    inputs = collate_contexts([random_history(config, n, rng) for n in (0, 3, config.max_history)], config)
    sids = torch.from_numpy(random_sids(config, 15, rng)).view(3, 5, -1)
    with torch.no_grad():
        context = half.encode_context(inputs)
        found, expected = half.sid_log_probs(context, sids), model.sid_log_probs(model.encode_context(inputs), sids)
        states = half.decode_paths(context, sids)
        log_p = half.level_logits(0, states[:, :, 0]).log_softmax(-1)
        value, in_float32 = (
            each.expected_value(each.decode_paths(each.encode_context(inputs), sids)[:, :, -1])
            for each in (half, model)
        )
    assert context.trunk_BPD.dtype == context.shared.keys_BHCK[0].dtype == torch.bfloat16
    assert found.dtype == states.dtype == value.dtype == torch.float32
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, 5), atol=1e-6, rtol=0.0)  # not rounded once more
    assert 0.0 < (found - expected).abs().mean() < 0.15
    assert (value / in_float32 - 1.0).square().mean().sqrt() < 0.05


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_what_every_beam_goes_through_multiplies_in_int8(config: LazyArConfig) -> None:
    rng = np.random.default_rng(7)
    model = random_model(config)
    served = copy.deepcopy(model).for_serving(torch.int8)
    rounded = {name for name, module in served.named_modules() if isinstance(module, Int8Linear)}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert rounded == {name for name in linear if name.startswith("decoder.")} != set()
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}

    inputs = collate_contexts([random_history(config, n, rng) for n in (0, 3, config.max_history)], config)
    sids = torch.from_numpy(random_sids(config, 15, rng)).view(3, 5, -1)
    with torch.no_grad():
        context = served.encode_context(inputs)
        found, expected = served.sid_log_probs(context, sids), model.sid_log_probs(model.encode_context(inputs), sids)
        log_p = served.level_logits(0, served.decode_paths(context, sids)[:, :, 0]).log_softmax(-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, 5), atol=1e-6, rtol=0.0)
    assert 0.0 < (found - expected).abs().mean() < 0.2


def test_a_type_that_layers_cannot_compute_in_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compute_type: torch.float16: give one of torch.float32, torch.bfloat16, to"):
        random_model(THREE_LEVELS).for_serving(torch.float16)
    with pytest.raises(ValueError, match=r"compute_type: torch.int8 on meta: give torch.bfloat16, int8 is for the CPU"):
        random_model(THREE_LEVELS).to("meta").for_serving(torch.int8)


def test_multi_token_prediction_reads_the_trunk_through_the_same_heads() -> None:
    rng = np.random.default_rng(2)
    model = random_model(THREE_LEVELS)
    oracle = PlainDecoder(model)
    history = random_history(THREE_LEVELS, 4, rng)

    with torch.no_grad():
        outputs = model.teacher_forced(collate_contexts([history], THREE_LEVELS), torch.zeros(1, 3, dtype=torch.int64))

    for level, logits in enumerate(outputs.mtp_level_logits):
        expected = oracle.level_logits(oracle.trunk_state(history, level), level)
        torch.testing.assert_close(logits[0].double(), expected, **CLOSE)
    assert outputs.mtp_ecpm_logits is not None
    expected = oracle.linear(oracle.trunk_state(history, 3), "ecpm_head")
    torch.testing.assert_close(outputs.mtp_ecpm_logits[0].double(), expected, **CLOSE)


def test_ordinary_decoder_has_no_trunk_predictions() -> None:
    config = CONFIGS["ordinary"]
    inputs = collate_contexts([random_history(config, 2, np.random.default_rng(0))], config)
    outputs = random_model(config).teacher_forced(inputs, torch.zeros(1, 3, dtype=torch.int64))
    assert outputs.mtp_level_logits == []
    assert outputs.mtp_ecpm_logits is None


def test_a_token_is_predicted_from_earlier_tokens_only() -> None:
    rng = np.random.default_rng(3)
    model = random_model(THREE_LEVELS)
    inputs = collate_contexts([random_history(THREE_LEVELS, 3, rng)], THREE_LEVELS)
    sids = torch.tensor([[2, 3, 1]])
    before = model.teacher_forced(inputs, sids)
    for level in range(3):
        changed = sids.clone()
        changed[0, level] = (changed[0, level] + 1) % THREE_LEVELS.level_sizes[level]
        after = model.teacher_forced(inputs, changed)
        for t in range(3):
            same = torch.equal(before.level_logits[t], after.level_logits[t])
            assert same == (t <= level), f"s_{t + 1} and a change of s_{level + 1}"
            assert torch.equal(before.mtp_level_logits[t], after.mtp_level_logits[t])
        assert not torch.equal(before.ecpm_logits, after.ecpm_logits)


def test_fuse_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    fuse = Fuse(4)
    m, s = torch.randn(4), torch.randn(4)
    expected = fuse.output.weight @ torch.cat([m * (fuse.gate.weight @ s), s])
    torch.testing.assert_close(fuse(m, s), expected)
    torch.testing.assert_close(TabledFuse(fuse)(m, fuse.of_tokens(s)), expected, **CLOSE)


def test_log_prob_of_a_sid_sums_its_tokens() -> None:
    rng = np.random.default_rng(4)
    model = random_model(THREE_LEVELS)
    histories = [random_history(THREE_LEVELS, n, rng) for n in (0, 4)]
    inputs = collate_contexts(histories, THREE_LEVELS)
    sids_BNT = torch.from_numpy(random_sids(THREE_LEVELS, 10, rng).reshape(2, 5, 3))
    log_probs = model.sid_log_probs(model.encode_context(inputs), sids_BNT)
    for n in range(5):
        outputs = model.teacher_forced(inputs, sids_BNT[:, n])
        one = sum(
            logits.log_softmax(-1).gather(1, sids_BNT[:, n, level, None])[:, 0]
            for level, logits in enumerate(outputs.level_logits)
        )
        torch.testing.assert_close(log_probs[:, n], one)


def test_log_probs_over_all_sids_are_a_distribution() -> None:
    config = replace(THREE_LEVELS, level_sizes=(3, 2, 4))
    model = random_model(config)
    context = model.encode_context(collate_contexts([random_history(config, 2, np.random.default_rng(0))], config))
    everything = torch.cartesian_prod(*(torch.arange(size) for size in config.level_sizes))
    probabilities = model.sid_log_probs(context, everything[None]).detach().exp()
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_weight_learns(config: LazyArConfig) -> None:
    rng = np.random.default_rng(5)
    model = random_model(config).train()
    histories = [random_history(config, config.max_history, rng) for _ in range(32)]
    outputs = model.teacher_forced(collate_contexts(histories, config), torch.from_numpy(random_sids(config, 32, rng)))
    logits = [*outputs.level_logits, outputs.ecpm_logits, *outputs.mtp_level_logits]
    sum(x.square().mean() for x in logits).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_a_new_model_starts_near_the_uniform_distribution() -> None:
    torch.manual_seed(0)
    config = replace(THREE_LEVELS, level_sizes=(64, 64, 64), d_model=64)
    model = LazyAr(config).eval()
    rng = np.random.default_rng(0)
    context = model.encode_context(collate_contexts([random_history(config, 6, rng) for _ in range(8)], config))
    log_probs = model.sid_log_probs(context, torch.from_numpy(random_sids(config, 80, rng).reshape(8, 10, 3)))
    assert float(log_probs.detach().mean()) == pytest.approx(-3 * np.log(64), rel=0.05)


def test_dropout_acts_in_training_only() -> None:
    model = random_model(THREE_LEVELS)
    inputs = collate_contexts([random_history(THREE_LEVELS, 5, np.random.default_rng(0))], THREE_LEVELS)
    sids = torch.zeros(1, 3, dtype=torch.int64)
    assert torch.equal(model.teacher_forced(inputs, sids).ecpm_logits, model.teacher_forced(inputs, sids).ecpm_logits)
    model.train()
    first, second = model.teacher_forced(inputs, sids), model.teacher_forced(inputs, sids)
    assert not torch.equal(first.ecpm_logits, second.ecpm_logits)
    assert not torch.equal(first.mtp_level_logits[0], second.mtp_level_logits[0])


def test_ecpm_buckets_split_at_their_edges() -> None:
    model = random_model(THREE_LEVELS)
    model.set_ecpm_buckets(torch.tensor([10.0, 20.0, 30.0, 40.0]), torch.tensor([5.0, 15.0, 25.0, 35.0, 50.0]))
    values = torch.tensor([0.0, 10.0, 10.5, 40.0, 41.0], dtype=torch.float64)
    assert model.ecpm_bucket(values).tolist() == [0, 0, 1, 3, 4]
    with pytest.raises(ValueError, match=r"edges, means: \(2,\), \(5,\): give \(4,\) and \(5,\)"):
        model.set_ecpm_buckets(torch.zeros(2), torch.zeros(5))


def test_weights_have_one_name_each_so_that_they_can_be_stored_as_they_are() -> None:
    for config in CONFIGS.values():
        storages = [value.data_ptr() for value in LazyAr(config).state_dict().values()]
        assert len(storages) == len(set(storages))
