"""What a codebook makes of a catalogue, held to counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from gr4ad_core.sid.codebook import Codebook, CodebookConfig, fit_codebook
from gr4ad_tools.codebook_report.quality import (
    largest_shares,
    pair_recall,
    prefix_neighbours,
    principal_plane,
    reconstruction_errors,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def fitted() -> tuple[Codebook, np.ndarray]:
    vectors = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    return fit_codebook(vectors, CodebookConfig(level_sizes=(8, 8, 4), embedding_dim=6)), vectors


def test_each_level_leaves_less_and_what_is_left_is_counted_by_hand(fitted: tuple[Codebook, np.ndarray]) -> None:
    codebook, vectors = fitted
    errors = reconstruction_errors(codebook, vectors)
    assert 1.0 > errors[0] > errors[1] > 0.0
    left = 0.0
    for vector, (first, second) in zip(vectors, codebook.quantise(vectors), strict=True):
        left += float(((vector - codebook.levels[0][first] - codebook.levels[1][second]) ** 2).sum())
    assert errors[1] == pytest.approx(left / float((vectors**2).sum()), rel=1e-4)


def test_the_fullest_codes_are_told_relative_to_an_even_spread() -> None:
    assert largest_shares(np.array([[0, 1], [0, 2], [0, 3], [1, 0]]), (2, 4)) == [1.5, 1.0]


@given(st.integers(0, 2**32), st.integers(3, 30), st.integers(1, 20))
def test_recall_of_pairs_is_that_of_sorting_all_others(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (n, 3)).astype(np.float32) + 0.5  # many of them alike
    pairs = np.array([rng.choice(n, 2, replace=False) for _ in range(m)])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = pair_recall(vectors, pairs, (1, 3))
    for row, (first, second) in enumerate(pairs):
        cosines = unit @ unit[first]
        as_near = [
            other for other in range(n) if other not in (first, second) and cosines[other] > cosines[second] - 1e-6
        ]
        surely = [other for other in as_near if cosines[other] > cosines[second] + 1e-6]
        for k in (1, 3):
            if len(as_near) < k:
                assert found[k][row]
            if len(surely) >= k:
                assert not found[k][row]


def test_ties_win_nothing() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    assert not pair_recall(vectors, np.array([[0, 1]]), (1,))[1][0]
    assert pair_recall(vectors, np.array([[0, 1]]), (2,))[2][0]


def test_neighbours_share_exactly_so_many_codes() -> None:
    sids = np.array([[1, 2, 3], [1, 2, 4], [1, 5, 3], [2, 2, 3], [1, 2, 5]])
    (found,) = prefix_neighbours(sids, [0], most=1)
    assert found.sharing == {2: (2, [1]), 1: (1, [2])}


def test_the_plane_keeps_distances_of_points_that_lie_in_one() -> None:
    rng = np.random.default_rng(1)
    flat = rng.standard_normal((20, 2)) @ np.linalg.qr(rng.standard_normal((7, 2)))[0].T
    plane = principal_plane(flat.astype(np.float32))
    apart = np.linalg.norm(flat[:, None] - flat, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(plane[:, None] - plane, axis=-1), apart, atol=1e-5)
