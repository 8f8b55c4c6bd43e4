"""Samples from a normalised data folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gr4ad_core.learning.data_folder import hold_out, read_interactions
from gr4ad_core.learning.sampling import AdTable, TrainingSet
from gr4ad_runtime.errors import FailedPreconditionError


def samples_of_folder(path: Path, holdout_events: int, ads: AdTable) -> TrainingSet:
    """Read a folder. Held-out events are dropped before anything else sees them.

    Args:
        path: The folder.
        holdout_events: Events held out at the end of every user's sequence.
        ads: The catalogue; events of ads it does not hold are skipped and counted.

    Raises:
        DataFolderError: The folder cannot be used.
        FailedPreconditionError: Nothing is left to learn from.
    """
    interactions = hold_out(read_interactions(path), holdout_events)
    if not len(interactions.items):
        remedy = "hold fewer events out, or give a folder with longer sequences"
        raise FailedPreconditionError("holdout_events", f"{holdout_events} leaves no event", remedy)
    known = np.isin(np.array(interactions.item_ids), np.array(ads.ad_ids))
    if not known[interactions.items].any():
        problem = f"{path} has {len(interactions.items)} events, none of an ad in the catalogue"
        remedy = f"ingest its ads first with `gr4ad ingest {path}`, then create the run anew"
        raise FailedPreconditionError("data_folder", problem, remedy)
    return TrainingSet.from_interactions(interactions, ads)
