"""Why a run failed, said to the person who started it."""

from __future__ import annotations

import errno

import torch
from gr4ad_core.learning.checkpoint import CheckpointError
from gr4ad_core.learning.data_folder import DataFolderError
from gr4ad_core.learning.train_step import DivergedError
from gr4ad_runtime.errors import Gr4adError

EXPLAINED = (Gr4adError, DataFolderError, CheckpointError, DivergedError, ValueError)


def is_explained(error: Exception) -> bool:
    """Tell whether an error says itself what is wrong and what helps; any other belongs into the log in full."""
    return isinstance(error, (*EXPLAINED, MemoryError, torch.OutOfMemoryError)) or _disk_full(error)


def failure_message(error: Exception, run_id: str) -> str:
    """Return what to tell of an error that ended a run."""
    if isinstance(error, EXPLAINED):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "memory: used up: choose a smaller preset, or give the trainer more memory"
    if _disk_full(error):
        return f"scratch folder: {error}: free disk space, or set TMPDIR to another folder; nothing was published"
    return f"internal error: {type(error).__name__}: the trainer's log has it in full under {run_id}"


def _disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
