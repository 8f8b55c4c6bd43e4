"""The objective on shown lists against its loop form, through a real model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gr4ad_core.learning.list_objective import ShownLists, list_loss
from gr4ad_core.learning.presets import tiny
from gr4ad_core.learning.rspo import RspoConfig
from gr4ad_core.learning.vsl import VslConfig
from gr4ad_core.model.context import collate_contexts
from gr4ad_core.model.history import UserHistory
from gr4ad_core.model.lazy_ar import LazyAr

from tests.oracles import rspo_loop, vsl_loop

SIZES = (7, 5, 3)
VSL = VslConfig(ecpm_loss_weight=0.3, mtp_loss_weight=0.5, business_smoothing=0.2)
RSPO = RspoConfig(beta=0.7)
LISTS = [
    # (items: SID, reward, worth of the response), reference likelihoods
    ([((1, 2, 0), 900.0, 40.0), ((3, 4, 2), 0.0, 0.0), ((6, 0, 1), 300.0, 700.0)], [-3.0, -4.0, -2.0]),
    ([((0, 0, 0), 0.0, 0.0), ((5, 1, 1), 0.0, 0.0)], [-1.0, -1.5]),  # nothing came of it
    ([((2, 3, 1), 700.0, 700.0)], None),  # one item
    ([((2, 2, 2), 0.0, 0.0), ((1, 1, 1), 100.0, 100.0)], None),  # of another pipeline
]


@pytest.fixture
def model() -> LazyAr:
    torch.manual_seed(3)
    config = replace(tiny(SIZES)[0], n_ecpm_buckets=3, dropout=0.0)
    model = LazyAr(config).double()
    model.set_ecpm_buckets(torch.tensor([50.0, 500.0]), torch.tensor([0.0, 200.0, 800.0]))
    return model.eval()


def history(n: int) -> UserHistory:
    rng = np.random.default_rng(n)
    return UserHistory(
        sids=np.stack([rng.integers(size, size=n) for size in SIZES], axis=1),
        behaviors=rng.integers(1, 4, size=n),
        event_times=np.arange(n, dtype=np.float64),
        request_time=float(n + 10),
        features={},
    )


def shown(model: LazyAr, lists: list) -> ShownLists:
    longest = max(len(items) for items, _ in lists)

    def padded(rows: list[list[float]], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=dtype)

    sids_BNT = torch.zeros(len(lists), longest, len(SIZES), dtype=torch.int64)
    for row, (items, _) in enumerate(lists):
        sids_BNT[row, : len(items)] = torch.tensor([sid for sid, _, _ in items])
    return ShownLists(
        inputs=collate_contexts([history(2 * n) for n in range(len(lists))], model.config),
        sids_BNT=sids_BNT,
        log_ref_BN=padded([ref or [] for _, ref in lists], torch.float64),
        has_ref_B=torch.tensor([ref is not None for _, ref in lists]),
        value_micros_BN=padded([[value for _, value, _ in items] for items, _ in lists], torch.float64),
        response_micros_BN=padded([[worth for _, _, worth in items] for items, _ in lists], torch.float64),
        mask_BN=padded([[True for _ in items] for items, _ in lists], torch.bool),
    )


def loop_form(model: LazyAr, lists: list, by_dpo: bool = False) -> float:
    """Every item by itself, its tokens one after the other."""
    costs, likelihoods = [], []
    for row, (items, _) in enumerate(lists):
        inputs = collate_contexts([history(2 * row)], model.config)
        costs.append([])
        likelihoods.append([])
        for sid, _, worth in items:
            sids_BT = torch.tensor([sid])
            with torch.no_grad():
                outputs = model.teacher_forced(inputs, sids_BT)
                likelihoods[-1].append(float(model.sid_log_probs(model.encode_context(inputs), sids_BT[None])))
            bucket = sum(worth > edge for edge in (50.0, 500.0))
            costs[-1].append(
                vsl_loop.vsl(
                    [x.tolist() for x in outputs.level_logits],
                    outputs.ecpm_logits.tolist(),
                    [x.tolist() for x in outputs.mtp_level_logits],
                    outputs.mtp_ecpm_logits.tolist(),
                    [sid],
                    [bucket],
                    [1.0],
                    VSL.ecpm_loss_weight,
                    VSL.mtp_loss_weight,
                    VSL.business_smoothing,
                )
            )
    values = [[value for _, value, _ in items] for items, _ in lists]
    imitate, explore = rspo_loop.balance(list(zip(likelihoods, values, strict=True)))
    total, count = 0.0, 0
    for row, (items, ref) in enumerate(lists):
        preference = rspo_loop.item_losses(likelihoods[row], ref, values[row], RSPO.beta, RSPO.reference_gate)
        for i, (_, _, worth) in enumerate(items):
            total += imitate[row][i] * costs[row][i] if worth else 0.0
            total += 0.0 if by_dpo else explore[row][i] * (preference[i] or 0.0)
            count += 1
    pairs = [
        rspo_loop.dpo(likelihoods[row], ref, values[row], RSPO.beta) or 0.0 if by_dpo else 0.0
        for row, (_, ref) in enumerate(lists)
    ]
    return total / count + sum(pairs) / len(pairs)


def test_objective_equals_its_loop_form(model):
    loss, metrics = list_loss(model, shown(model, LISTS), VSL, RSPO)
    assert loss.item() == pytest.approx(loop_form(model, LISTS), rel=1e-6)
    assert int(metrics["unpaired_lists"]) == 2
    assert not any(value.requires_grad for value in metrics.values())


def test_with_dpo_every_list_gives_its_best_against_its_worst(model):
    loss, metrics = list_loss(model, shown(model, LISTS), VSL, RSPO, "dpo")
    assert loss.item() == pytest.approx(loop_form(model, LISTS, by_dpo=True), rel=1e-6)
    assert int(metrics["unpaired_lists"]) == 2
    assert loss.item() != pytest.approx(list_loss(model, shown(model, LISTS), VSL, RSPO)[0].item())


def test_padding_changes_nothing(model):
    alone = list_loss(model, shown(model, LISTS[:1]), VSL, RSPO)[0]
    longer = shown(model, [LISTS[0], ([((1, 1, 1), 0.0, 0.0)] * 6, None)])
    first = {
        name: getattr(longer, name)[:1]
        for name in ("sids_BNT", "log_ref_BN", "has_ref_B", "value_micros_BN", "response_micros_BN", "mask_BN")
    }
    cut = ShownLists(inputs=shown(model, LISTS[:1]).inputs, **first)
    torch.testing.assert_close(list_loss(model, cut, VSL, RSPO)[0], alone)


def test_lists_without_any_response_have_no_loss_and_no_gradient(model):
    loss, metrics = list_loss(model, shown(model, LISTS[1:2]), VSL, RSPO)
    loss.backward()
    assert loss.item() == 0.0
    assert int(metrics["unpaired_lists"]) == 1
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert all(torch.isfinite(value) for value in metrics.values())


def test_a_step_against_the_gradient_makes_the_paid_ad_likelier_than_its_neighbour(model):
    lists = shown(model, LISTS[:1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def margin() -> float:
        with torch.no_grad():
            log_p = model.sid_log_probs(model.encode_context(lists.inputs), lists.sids_BNT)[0]
        return float(log_p[0] - log_p[1])

    before = margin()
    list_loss(model, lists, VSL, RSPO)[0].backward()
    optimizer.step()
    assert margin() > before
