"""What is measured, one function for each group of figures; each takes the workload and returns its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from gr4ad_core.decoding.beam_search import expected_ecpm_of_beams
from gr4ad_core.model.compute_type import in_hardware
from gr4ad_core.model.lazy_ar import LazyAr
from rich.progress import Progress

from gr4ad_tools import figures
from gr4ad_tools.bench.decode.exact_search import ExactSearch
from gr4ad_tools.bench.decode.flops import decode_flops
from gr4ad_tools.bench.decode.plain_search import Tricks, plain_beam_search
from gr4ad_tools.bench.decode.t5_generate import MissingTransformersError, T5Generate
from gr4ad_tools.bench.decode.turns import Step, in_turn, median_ms, ratio
from gr4ad_tools.bench.decode.workload import BATCHES, Workload, decode, perplexities, request
from gr4ad_tools.bench.index import short
from gr4ad_tools.figures import Figure

GEMM_SIZE: Final = 2048
"""Rows and columns of the matrix product whose rate the engine is held against."""


@dataclass(frozen=True)
class Rounds:
    """How often steps take turns, and what the cost tables cover."""

    paired: int
    """Of every ratio but that of Hugging Face's `generate`."""
    generate: int
    """Of that one, which takes seconds each."""
    sizes: tuple[int, ...]
    """Live SIDs that the cost is measured at."""


def describe(work: Workload, rounds: Rounds, bar: Progress) -> dict[str, Figure]:
    """Say what the workload is like: fan-outs of live prefixes, and how sharp the policy's distributions are."""
    del rounds, bar
    return _fan_outs(work) | {
        f"perplexity_level_{level}": Figure(value, "codes", work.setting.batch * work.setting.widths[-1])
        for level, value in enumerate(perplexities(work), start=1)
    }


def _fan_outs(work: Workload, suffix: str = "") -> dict[str, Figure]:
    return {
        f"fan_out_level_{level}{suffix}": Figure(value, "live children", live)
        for level, (value, live) in enumerate(zip(work.fan_outs, work.live_counts, strict=False), start=2)
    }


def tricks(work: Workload, rounds: Rounds, bar: Progress) -> dict[str, Figure]:
    """Take one trick away at a time: batch of the setting, same widths, but for `growing_ratio`, and float32.

    `control_ratio` is the search of `plain_search` with every trick on over the engine: near one, or the others are
    not what they say.
    """
    ordinary = work.policy(n_lazy=0).for_serving()
    flat = (work.setting.widths[-1],) * len(work.setting.widths)
    others: Mapping[str, Step] = {
        "lazyar_ratio": lambda number: work.decode(number, model=ordinary),
        "growing_ratio": lambda number: work.decode(number, widths=flat),
        "shared_kv_ratio": lambda number: _plain(work, number, Tricks(shared_context=False)),
        "precut_ratio": lambda number: _plain(work, number, Tricks(pre_cut=False)),
        "control_ratio": lambda number: _plain(work, number, Tricks()),
    }
    found: dict[str, Figure] = {}
    for name, other in others.items():
        seconds = in_turn({"other": other, "engine": work.decode}, rounds.paired, bar, name)
        found |= ratio(name, seconds["other"], seconds["engine"])
        found[name.replace("_ratio", "_ms")] = median_ms(seconds["other"])
    return found | {"batch_ms": median_ms(seconds["engine"])}


@torch.inference_mode()
def _plain(work: Workload, number: int, with_tricks: Tricks) -> object:
    context = work.engine.encode_context(work.batches[number % BATCHES])
    return plain_beam_search(work.engine, context, work.trie, work.setting.widths, with_tricks)


def total(work: Workload, rounds: Rounds, bar: Progress) -> dict[str, Figure]:
    """Compare a request of the plain decoder with a request's share of the engine's batch, fastest and in float32.

    The engine is fastest in bfloat16 where the device multiplies it itself, in float32 elsewhere. The plain decoder has
    K = 0, decodes one request at a time in float32, flat at the last width, and uses no trick.
    """
    fastest = _fastest(work)
    ordinary = work.policy(n_lazy=0)
    flat = (work.setting.widths[-1],) * len(work.setting.widths)
    nothing = Tricks(shared_context=False, path_rows=False, pre_cut=False)

    @torch.inference_mode()
    def plain(number: int) -> object:
        context = ordinary.encode_context(work.single_requests[number % BATCHES])
        return plain_beam_search(ordinary, context, work.trie, flat, nothing)

    steps: Mapping[str, Step] = {
        "plain": plain,
        "total_ratio": lambda number: work.decode(number, model=fastest),
        "total_f32_ratio": work.decode,
    }
    seconds = in_turn(steps, rounds.paired, bar, "total_ratio")
    found = {"plain_request_ms": median_ms(seconds["plain"])}
    for name in ("total_ratio", "total_f32_ratio"):
        found |= ratio(name, seconds["plain"], seconds[name], scale=work.setting.batch)
    return found


def generate(work: Workload, rounds: Rounds, bar: Progress) -> dict[str, Figure]:
    """Compare a request of Hugging Face's `generate`, in float32, with a request's share of the engine's batch, at its
    fastest (see `total`) and in float32.

    Returns:
        Nothing where transformers is not installed; the bar says so.
    """
    try:
        t5 = T5Generate(work.setting.config, work.sids_NT, work.setting.seed, work.setting.device)
    except MissingTransformersError as error:
        bar.console.print(str(error), style="yellow", markup=False, soft_wrap=True)
        return {}
    prompts = [t5.prompt(each.sids_BST[0]) for each in work.single_requests]
    beams = work.setting.widths[-1]
    fastest = _fastest(work)
    steps: Mapping[str, Step] = {
        "generate": lambda number: t5.generate(prompts[number % BATCHES], beams),
        "hf_generate_ratio": lambda number: work.decode(number, model=fastest),
        "hf_generate_f32_ratio": work.decode,
    }
    seconds = in_turn(steps, rounds.generate, bar, "hf_generate_ratio")
    found = {"hf_generate_request_ms": median_ms(seconds["generate"])}
    for name in ("hf_generate_ratio", "hf_generate_f32_ratio"):
        found |= ratio(name, seconds["generate"], seconds[name], scale=work.setting.batch)
    return found


def gemm(work: Workload, rounds: Rounds, bar: Progress) -> dict[str, Figure]:
    """Hold the engine's rate of matrix products against that of one large product of the same type, in turn.

    The engine takes a turn in each type that its device multiplies itself, and the product one in each floating-point
    type among them.
    """
    types, device = lower_types(work), work.model.device
    lower = {kind: work.served(each) for kind, each in types.items() if in_hardware(each, device)}
    if absent := ", ".join(sorted(types.keys() - lower)):
        bar.console.print(f"{absent}: not timed, this {device.type} does not multiply it itself", style="yellow")
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=work.setting.device) for _ in range(2))
    a16, b16 = a.bfloat16(), b.bfloat16()
    products: dict[str, Step] = {"gemm_f32": lambda _: a @ b}
    if "bf16" in lower:
        products["gemm_bf16"] = lambda _: a16 @ b16
    models = {kind: partial(work.decode, model=model) for kind, model in lower.items()}
    steps: Mapping[str, Step] = {**products, "f32": work.decode, **models}
    seconds = in_turn(steps, rounds.paired, bar, "gemm_share and lower precision")
    setting = work.setting
    flops = decode_flops(setting.config, setting.batch, setting.config.max_history, setting.widths)
    found = {"batch_gflop": Figure(flops / 1e9, "GFLOP")}
    for kind in lower:
        found |= ratio(f"{kind}_ratio", seconds["f32"], seconds[kind])
        found[f"{kind}_batch_ms"] = median_ms(seconds[kind])
    of_product = 2 * GEMM_SIZE**3
    for product in products:
        kind = product.removeprefix("gemm_")
        rates = [of_product / each / 1e9 for each in seconds[product]]
        found[f"gemm_gflops_{kind}"] = figures.percentile(rates, 50, "GFLOP/s")
        share = ratio(f"gemm_share_{kind}", seconds[product], seconds[kind], scale=flops / of_product)
        found |= {name: replace(figure, unit="share") for name, figure in share.items()}
    return found


@torch.inference_mode()
def costs(work: Workload, rounds: Rounds, bar: Progress) -> dict[str, Figure]:
    """Measure one request alone, its eCPM step, and what a batch costs by beams, events, layers and live SIDs."""
    context_1 = work.engine.encode_context(work.single_requests[0])
    result = decode(work.engine, work.single_requests[0], work.trie, work.setting.widths)
    everything_1N = torch.arange(work.setting.widths[-1], device=work.setting.device)[None]
    steps: Mapping[str, Step] = {
        "single_ms": lambda number: decode(
            work.engine, work.single_requests[number % BATCHES], work.trie, work.setting.widths
        ),
        "ecpm_step_ms": lambda _: expected_ecpm_of_beams(work.engine, context_1, result, everything_1N),
    }
    seconds = in_turn(steps, rounds.paired, bar, "single request and eCPM step")
    found = {name: median_ms(each) for name, each in seconds.items()}
    return found | _by_beams(work, rounds, bar) | _by_shape(work, rounds, bar) | _by_ads(work, rounds, bar)


def _by_beams(work: Workload, rounds: Rounds, bar: Progress) -> dict[str, Figure]:
    """Widen or narrow all levels by one factor, so that the last width is a quarter to four times the setting's."""
    plans = {
        widths[-1]: widths
        for widths in (tuple(max(width * times // 4, 1) for width in work.setting.widths) for times in (1, 2, 4, 8, 16))
    }
    steps = {
        f"ms_beams_{last}": lambda number, widths=widths: work.decode(number, widths=widths)
        for last, widths in plans.items()
    }
    seconds = in_turn(steps, rounds.paired, bar, "by beams")
    least, most = min(plans), max(plans)
    name = f"beams_{most}_over_{least}"
    of_all = seconds[f"ms_beams_{most}"], seconds[f"ms_beams_{least}"]
    return (
        {name: median_ms(each) for name, each in seconds.items()}
        | ratio(name, *of_all)
        | ratio(f"{name}_per_beam", *of_all, scale=least / most)
    )


def _by_shape(work: Workload, rounds: Rounds, bar: Progress) -> dict[str, Figure]:
    """Change the events of a history, then the layers of the decoder, two thirds of them lazy."""
    config = work.setting.config
    lengths = [max(config.max_history * times // 4, 1) for times in (1, 2, 4, 8, 16)]
    depths = [max(config.n_layers * times // 3, 1) for times in (1, 2, 3, 4)]
    named: dict[str, dict[str, LazyAr]] = {
        "events": {f"ms_events_{length}": work.policy(max_history=length) for length in lengths},
        "layers": {
            f"ms_layers_{depth}": work.policy(
                n_layers=depth, n_lazy=depth * 2 // 3, kv_groups=min(config.kv_groups, depth)
            )
            for depth in depths
        },
    }
    found: dict[str, Figure] = {}
    for what, policies in named.items():
        steps = {name: work.with_policy(policy).decode for name, policy in policies.items()}
        found |= {name: median_ms(each) for name, each in in_turn(steps, rounds.paired, bar, f"by {what}").items()}
    return found


def _by_ads(work: Workload, rounds: Rounds, bar: Progress) -> dict[str, Figure]:
    """Change the number of live SIDs; the policy stays."""
    found: dict[str, Figure] = {}
    steps: dict[str, Step] = {}
    for size in rounds.sizes:
        task = bar.add_task(f"{size:,} ads: build", total=1)
        other = Workload.draw(replace(work.setting, ads=size))
        bar.update(task, completed=1)
        steps[f"ms_ads_{short(size)}"] = other.decode
        found |= _fan_outs(other, f"_{short(size)}")
    seconds = in_turn(steps, rounds.paired, bar, "by ads")
    least, most = short(min(rounds.sizes)), short(max(rounds.sizes))
    return (
        found
        | {name: median_ms(each) for name, each in seconds.items()}
        | ratio(f"ads_{most}_over_{least}", seconds[f"ms_ads_{most}"], seconds[f"ms_ads_{least}"])
    )


def lower_types(work: Workload) -> dict[str, torch.dtype]:
    """Return each lower type that layers can compute in on the workload's device, in hardware or not."""
    return {"bf16": torch.bfloat16} | ({"int8": torch.int8} if work.setting.device == "cpu" else {})


def _fastest(work: Workload) -> LazyAr:
    return work.served(torch.bfloat16) if in_hardware(torch.bfloat16, work.model.device) else work.engine


def overlap(work: Workload, rounds: Rounds, bar: Progress) -> dict[str, Figure]:
    """Compare the engine's lists with the oracle's: of every batch's requests, in each type."""
    del rounds
    setting = work.setting
    exact = ExactSearch(work.model, work.sids_NT)
    models = {"f32": work.engine, **{kind: work.served(each) for kind, each in lower_types(work).items()}}
    shares: dict[str, list[float]] = {kind: [] for kind in models}
    task = bar.add_task("overlap with the exact search", total=BATCHES * setting.batch)
    for number, inputs in enumerate(work.batches):
        lists = {kind: work.decode(number, model=model) for kind, model in models.items()}
        for row in range(setting.batch):
            alone = request(inputs, row)
            truth = exact.find(alone, setting.widths)
            for kind, result in lists.items():
                sids = [tuple(sid) for sid in result.sids_BWT[row][result.valid_BW[row]].tolist()]
                shares[kind].append(exact.overlap(alone, truth, sids))
            bar.advance(task)
    return {f"overlap_{kind}": figures.mean(each, "share") for kind, each in shares.items()}


COMPARISONS: Final[Mapping[str, Callable[[Workload, Rounds, Progress], dict[str, Figure]]]] = {
    "workload": describe,
    "tricks": tricks,
    "total": total,
    "generate": generate,
    "gemm": gemm,
    "costs": costs,
    "overlap": overlap,
}
"""By name, in the order of a run."""
