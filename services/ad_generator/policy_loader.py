"""Brings a published policy into memory, or says why not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from gr4ad.training.v1 import training_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.errors import DataLossError, InvalidArgumentError, NotFoundError, UnavailableError, shorten
from gr4ad_runtime.log import get_logger

from ad_generator.engine import LoadedPolicy
from ad_generator.policy_messages import WorkerSettings
from ad_generator.policy_process import PolicyProcess, PolicyRefusedError

KEPT_POLICIES: Final = 4
"""Folders kept in the cache, the latest used: a roll-back to one of them needs no artifact store."""
SHA256: Final = re.compile("[0-9a-f]{64}")

log = get_logger(__name__)


class PolicyLoader:
    """Fetches policies from the artifact store into a local cache and loads them. Its methods block."""

    def __init__(
        self, store: ArtifactStore, cache: Path, device: str, compute_type: str, torch_threads: int, n_levels: int
    ) -> None:
        """Use a cache folder of its own.

        Args:
            store: Where policies are published.
            cache: Local folder for them.
            device: Torch device to load to.
            compute_type: Type that layers compute in, a name of torch's.
            torch_threads: Threads of one model call.
            n_levels: SID levels that the beam widths are for.
        """
        self._store = store
        self._base = store.uri("policies").removesuffix("policies")
        self._cache = cache
        self._device = device
        self._compute_type = compute_type
        self._torch_threads = torch_threads
        self._n_levels = n_levels

    def load(self, policy: training_pb2.Policy) -> LoadedPolicy:
        """Load a policy as its publication describes it, into a process of its own.

        A cached folder that fails the check is fetched again once: the copy may be what is damaged.

        Raises:
            PolicyRefusedError: The policy is not there, not what was published, or not for this engine.
            Gr4adError: The store cannot be reached, or the disk is full; another attempt may succeed.
        """
        try:
            return self._fetch_and_load(policy)
        except OSError as error:
            raise UnavailableError(
                "policy_cache",
                self._cache,
                f"{error.strerror}: set GR4AD_POLICY_CACHE to a folder that can be written and has room",
            ) from error

    def _fetch_and_load(self, policy: training_pb2.Policy) -> LoadedPolicy:
        ref = policy.policy
        if not SHA256.fullmatch(ref.sha256):
            raise PolicyRefusedError(f"sha256: {shorten(ref.sha256)}: give 64 lower-case hexadecimal digits")
        if not policy.uri.startswith(self._base):
            raise PolicyRefusedError(
                f"uri: {shorten(policy.uri)}: not in the artifact store {self._base}: "
                "set GR4AD_ARTIFACT_STORE to that of the trainer"
            )
        folder = self._cache / ref.sha256
        if folder.exists():
            try:
                return self._load(folder, ref)
            except PolicyRefusedError:
                shutil.rmtree(folder)
        self._cache.mkdir(parents=True, exist_ok=True)
        try:
            self._store.fetch_folder(policy.uri.removeprefix(self._base), folder)
        except (NotFoundError, DataLossError, InvalidArgumentError) as error:
            raise PolicyRefusedError(error.message) from error
        try:
            loaded = self._load(folder, ref)
        except PolicyRefusedError:
            shutil.rmtree(folder)
            raise
        self._trim()
        return loaded

    def _load(self, folder: Path, ref: type_pb2.PolicyRef) -> LoadedPolicy:
        folder.touch()  # when it was last used
        settings = WorkerSettings(ref.codebook_id, ref.sha256, self._device, self._compute_type, self._torch_threads)
        process = PolicyProcess(folder, settings)
        try:
            self._check(process, ref)
        except PolicyRefusedError:
            process.close()
            raise
        if not process.in_hardware:
            log.warning(
                "compute_type_emulated",
                device=self._device,
                compute_type=self._compute_type,
                reason="this device does not multiply that type in hardware: calls take many times as long",
                remedy="set GR4AD_COMPUTE_TYPE to float32, or let the generator run where the processor has them",
            )
        if process.lacks_compiler:
            log.warning(
                "layers_not_compiled",
                device=self._device,
                reason="torch.compile finds no C compiler: layers run operation by operation, which takes longer",
                remedy="install one (gcc and the C library's headers) beside torch, or name one in CC",
            )
        return LoadedPolicy(ref, process)

    def _check(self, process: PolicyProcess, ref: type_pb2.PolicyRef) -> None:
        if process.policy_id != ref.policy_id:
            raise PolicyRefusedError(
                f"policy_id: {process.policy_id}: expected {ref.policy_id}: publish the folder under its own name"
            )
        if len(process.level_sizes) != self._n_levels:
            raise PolicyRefusedError(
                f"beam_widths: {self._n_levels} levels: the policy writes {len(process.level_sizes)}: "
                "set GR4AD_BEAM_WIDTHS to one width per level"
            )

    def _trim(self) -> None:
        folders = sorted(
            (path for path in self._cache.iterdir() if path.is_dir() and not path.name.startswith(".")),
            key=lambda path: path.stat().st_mtime,
        )
        for folder in folders[:-KEPT_POLICIES]:
            shutil.rmtree(folder, ignore_errors=True)
