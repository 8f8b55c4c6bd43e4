"""What paths are worth to held-out users, and what each differs by from the reference.

Shapes: M users, K ads of the head of a list, T SID levels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.bench.recall.answers import REFERENCE, WIDTH, Answers, K
from gr4ad_tools.bootstrap import UserSums, bootstrap_ratio
from gr4ad_tools.figures import Figure


def recall_figures(answers: Mapping[str, Answers]) -> dict[str, Figure]:
    """Return each path's figures, and what it differs by from the reference, with a paired interval of 95 %.

    `recall@k` is the share of users whose held-out ad is among the first k, `ecpm@k` what the first k are predicted to
    be worth, and `overlap@k` the mean share of the reference's first k that is among the path's. Predicted eCPM is left
    out where the policy predicts the same for all ads.

    Args:
        answers: By path, `REFERENCE` among them, to the same users.
    """
    valued = bool(np.ptp(answers[REFERENCE].ecpm_M))
    theirs = _by_user(answers[REFERENCE])
    found: dict[str, Figure] = {}
    for path, of_path in answers.items():
        short = path.replace("float", "f")  # f32, bf16
        for (name, unit), ours_M in _by_user(of_path).items():
            if unit and not valued:
                continue
            found[f"{name}_{short}"] = Figure(float(ours_M.mean()), unit, len(ours_M))
            if path != REFERENCE:
                found |= _difference(f"{name}_{short}_diff", ours_M, theirs[name, unit])
        if path != REFERENCE:
            found[f"overlap@{K}_{short}"] = _overlap(of_path.best_MKT, answers[REFERENCE].best_MKT)
    return found


def _by_user(answers: Answers) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Return what is measured of each user's list, [M], by name and unit."""
    recalls = {(f"recall@{k}", ""): (answers.position_M < k).astype(np.float64) for k in (K, WIDTH)}
    return recalls | {(f"ecpm@{K}", "micros"): answers.ecpm_M}


def _difference(name: str, ours_M: NDArray[np.float64], theirs_M: NDArray[np.float64]) -> dict[str, Figure]:
    users_M, ones_M = np.arange(len(ours_M)), np.ones(len(ours_M))
    ours, theirs = (UserSums(users_M, each_M, ones_M) for each_M in (ours_M, theirs_M))
    difference = bootstrap_ratio(ours, theirs, paired=True, seed=0)
    ends = {"pct": difference.value, "ci_low": difference.low, "ci_high": difference.high}
    return {f"{name}_{end}": Figure(100.0 * value, "%", len(ours_M)) for end, value in ends.items()}


def _overlap(ours_MKT: NDArray[np.int64], theirs_MKT: NDArray[np.int64]) -> Figure:
    """Return the mean share of the second lists' SIDs that are in the first."""
    in_ours_MK = (theirs_MKT[:, :, None] == ours_MKT[:, None]).all(-1).any(-1)
    there_MK = theirs_MKT[..., 0] >= 0
    shares_M = (in_ours_MK & there_MK).sum(1) / there_MK.sum(1)
    return Figure(float(shares_M.mean()), "share", len(shares_M), float(shares_M.min()), float(shares_M.max()))
