"""The process that a policy computes in: it holds the weights and the index, and knows nothing of gRPC.

Model calls here share no interpreter with the server's event loop, so neither holds up the other; and a policy on its
way in or out is a process that starts or ends.

Shapes: B requests, W beams, N candidates.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gr4ad_core.decoding.beam_schedule import plan_widths
from gr4ad_core.decoding.beam_search import beam_search, expected_ecpm_of_beams
from gr4ad_core.decoding.constraints import DeviceTrie, TorchTrie
from gr4ad_core.decoding.memory import keep_freed_memory
from gr4ad_core.learning.checkpoint import CheckpointError, load_checkpoint
from gr4ad_core.model.compiled_layers import can_compile, stop_compiling
from gr4ad_core.model.compute_type import in_hardware
from gr4ad_core.model.context import collate_contexts
from gr4ad_core.model.lazy_ar import LazyAr
from gr4ad_core.sid.trie import LiveTrie

from ad_generator.policy_messages import (
    Decode,
    Decoded,
    Failed,
    LiveAds,
    LiveChanges,
    Loaded,
    Refused,
    Serve,
    Stages,
    WorkerSettings,
)

LOADING_NICENESS: Final = 10


class LiveIndex:
    """The live ads of this process: what the server sent first, and every change since."""

    def __init__(self, model: LazyAr, ads: LiveAds) -> None:
        """Index all live ads, for a model's levels and device."""
        self.trie = LiveTrie.build(ads.sids_AT, model.config.level_sizes, ads.slots_A)
        self._device_trie = None if model.device.type == "cpu" else DeviceTrie(self.trie, model.device)

    def change(self, changes: LiveChanges) -> None:
        """Take over the state of some ads; one that is as it was changes nothing."""
        for slot, sid, live in zip(
            changes.slots_C.tolist(), changes.sids_CT.tolist(), changes.live_C.tolist(), strict=True
        ):
            if live:
                self.trie.insert(sid, slot)
            else:
                self.trie.remove(sid)

    def tensors(self) -> TorchTrie:
        """Return what a search walks."""
        if self._device_trie is None:
            return TorchTrie.from_view(self.trie.view, "cpu")
        return self._device_trie.latest()


@dataclass
class _Worker:
    connection: Connection[Any, Any]
    model: LazyAr
    index: LiveIndex | None = None

    def answer(self) -> None:
        """Answer until told to serve, or until the other side is gone."""
        while True:
            try:
                message = self.connection.recv()
                if isinstance(message, Serve):
                    return
                if isinstance(message, Decode):
                    self.connection.send(self._reply(message))
                else:
                    self._take(message)
            except (EOFError, OSError):
                os._exit(0)
            except Exception:  # the live ads are not known any more
                traceback.print_exc()
                os._exit(1)

    def _take(self, message: LiveAds | LiveChanges) -> None:
        if isinstance(message, LiveAds):
            self.index = LiveIndex(self.model, message)
        else:
            assert self.index is not None, "the first message brings all live ads"
            self.index.change(message)

    def _reply(self, message: Decode) -> Decoded | Failed:
        try:
            assert self.index is not None, "live ads come before the first call"
            return decode(self.model, self.index, message)
        except Exception as error:
            return Failed(f"{type(error).__name__}: {error}")


def run(connection: Connection[Any, Any], folder: Path, settings: WorkerSettings) -> None:
    """Load a policy, try it out with little priority, then serve it; the body of the process.

    Args:
        connection: Where `Decode` messages come from; the first answer is `Loaded` or `Refused`.
        folder: The policy's checkpoint.
        settings: What to expect there, and where to compute.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the server decides when this process ends
        signal.signal(number, signal.SIG_IGN)
    keep_freed_memory()
    torch.set_num_threads(settings.torch_threads)
    workers: list[_Worker] = []

    def load() -> None:
        if sys.platform == "linux":  # elsewhere priorities are those of whole processes
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADING_NICENESS)
        worker = _load(connection, folder, settings)
        if worker is not None:
            workers.append(worker)
            worker.answer()

    loading = threading.Thread(target=load)
    loading.start()
    loading.join()
    for worker in workers:
        if can_compile(worker.model.device):
            stop_compiling()  # no request waits for what the tryout did not call for
        worker.answer()


def _load(connection: Connection[Any, Any], folder: Path, settings: WorkerSettings) -> _Worker | None:
    try:
        model, manifest = load_checkpoint(
            folder, expected_codebook_id=settings.codebook_id, expected_sha256=settings.sha256
        )
        compute_type: torch.dtype = getattr(torch, settings.compute_type)
        worker = _Worker(connection, model.to(settings.device).for_serving(compute_type))
    except CheckpointError as error:
        connection.send(Refused(str(error)))
        return None
    except Exception as error:
        connection.send(Failed(f"{type(error).__name__}: {error}"))
        return None
    gc.freeze()  # modules and weights stay: searching them for garbage would hold up model calls
    loaded = Loaded(
        manifest.policy_id,
        model.config.level_sizes,
        in_hardware=in_hardware(compute_type, model.device),
        lacks_compiler=model.device.type == "cuda" and not can_compile(model.device),
    )
    connection.send(loaded)
    return worker


@torch.inference_mode()
def decode(model: LazyAr, index: LiveIndex, call: Decode) -> Decoded:
    """Find the most likely live SIDs of each request and value them.

    Args:
        model: In evaluation mode.
        index: The live ads.
        call: The B requests, and what to look for.
    """
    started_ns, started = time.time_ns(), time.perf_counter_ns()
    plan = plan_widths(call.widths, index.trie.live_counts)
    if not index.trie.size:
        nothing_BN = np.zeros((len(call.histories), 0))
        stages = Stages(started_ns, 0, (0,) * len(plan.widths), 0)
        return Decoded(nothing_BN.astype(np.int64), nothing_BN, nothing_BN, plan, stages)
    context = model.encode_context(collate_contexts(call.histories, model.config).to(model.device))
    encoded = time.perf_counter_ns()
    beams = beam_search(model, context, index.tensors(), plan.widths)
    searched = time.perf_counter_ns()
    best_BN = torch.arange(min(call.wanted, plan.widths[-1]), device=model.device).expand(len(call.histories), -1)
    ecpm_BN = expected_ecpm_of_beams(model, context, beams, best_BN).numpy(force=True)
    return Decoded(
        slots_BN=beams.slots_BW[:, : best_BN.shape[1]].numpy(force=True).copy(),
        log_probs_BN=beams.log_probs_BW[:, : best_BN.shape[1]].numpy(force=True).astype(np.float64),
        ecpm_BN=ecpm_BN.astype(np.float64),
        plan=plan,
        stages=Stages(
            started_ns=started_ns,
            encode_us=(encoded - started) // 1000,
            level_us=beams.level_us,
            ecpm_us=(time.perf_counter_ns() - searched) // 1000,
        ),
    )
