import numpy as np
import pytest
from gr4ad_core.sid import balanced_kmeans as balanced
from gr4ad_core.sid import nearest_centroids
from gr4ad_core.sid.balanced_kmeans import balanced_kmeans
from gr4ad_core.sid.capacity_match import capacity_match
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.oracles import balanced_kmeans as oracle


@st.composite
def clouds(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Points, some of them alike and some of them crowded, and a number of clusters."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, dim = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    points = rng.standard_normal((n, dim)) * draw(st.sampled_from([0.0, 1e-3, 1.0, 100.0]))
    crowded = rng.random(n) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    points[crowded] *= 0.01
    repeated = rng.random(n) < draw(st.sampled_from([0.0, 0.5]))
    points[repeated] = points[0]
    return points.astype(np.float32), draw(st.integers(1, 12))


@given(clouds(), st.integers(0, 5))
@settings(deadline=None)
def test_no_cluster_exceeds_its_share(case: tuple[np.ndarray, int], seed: int) -> None:
    points, k = case
    found = balanced_kmeans(points, k, seed, iterations=3)
    assert found.centroids.shape == (k, points.shape[1])
    assert np.isfinite(found.centroids).all()
    assert found.labels.shape == (len(points),)
    assert found.labels.min() >= 0
    assert np.bincount(found.labels, minlength=k).max() <= -(-len(points) // k)


@given(clouds(), st.integers(1, 5), st.integers(0, 2))
@settings(deadline=None)
def test_match_is_stable(case: tuple[np.ndarray, int], n_candidates: int, spare: int) -> None:
    points, k = case
    centroids = points[np.random.default_rng(0).integers(len(points), size=k)] + np.float32(0.1)
    capacity = -(-len(points) // k) + spare
    labels = capacity_match(points, centroids, capacity, n_candidates).tolist()
    distance = oracle.distances(points, centroids)
    margin = 1e-5 * max(max(map(max, distance)), 1.0)  # of float32 distances
    assert max(labels.count(label) for label in labels) <= capacity
    assert oracle.blocking_pairs(distance, labels, capacity, margin) == []


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 8), st.integers(1, 8))
@settings(deadline=None)
def test_match_is_the_one_of_proposing_one_by_one(seed: int, n: int, k: int, n_candidates: int) -> None:
    # Whole numbers far apart: distances are exact, and ties all but impossible.
    rng = np.random.default_rng(seed)
    points = rng.integers(-600, 600, (n, 3)).astype(np.float32)
    centroids = rng.integers(-600, 600, (k, 3)).astype(np.float32)
    distance = oracle.distances(points, centroids)
    assume(len({length for row in distance for length in row}) == n * k)
    capacity = -(-n // k)
    assert capacity_match(points, centroids, capacity, n_candidates).tolist() == oracle.propose_one_by_one(
        distance, capacity
    )


def test_blocks_and_candidates_do_not_change_the_match(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    points = rng.integers(-9, 9, (200, 4)).astype(np.float32)
    whole = capacity_match(points, points[:16], 13)
    monkeypatch.setattr(nearest_centroids, "BLOCK_ELEMENTS", 50)
    np.testing.assert_array_equal(capacity_match(points, points[:16], 13, n_candidates=2), whole)


def test_nearest_are_sorted_and_ties_keep_the_lower_index() -> None:
    centroids = np.array([[2.0], [1.0], [-1.0], [1.0], [9.0]], dtype=np.float32)
    found, distance = nearest_centroids.nearest(np.zeros((1, 1), np.float32), centroids, 4)
    assert found.tolist() == [[1, 2, 3, 0]]
    assert distance.tolist() == [[1.0, 1.0, 1.0, 4.0]]


def test_same_seed_same_bytes() -> None:
    points = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    first, again, other = (balanced_kmeans(points, 16, seed) for seed in (4, 4, 5))
    assert first.centroids.tobytes() == again.centroids.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert first.centroids.tobytes() != other.centroids.tobytes()


def test_finds_groups_of_equal_size() -> None:
    rng = np.random.default_rng(1)
    corners = rng.standard_normal((8, 16)) * 10
    points = (np.repeat(corners, 25, axis=0) + rng.standard_normal((200, 16)) * 0.1).astype(np.float32)
    labels = balanced_kmeans(points, 8, seed=0, iterations=30).labels.reshape(8, 25)
    pure = sum(len(set(group.tolist())) == 1 for group in labels)
    assert pure >= 6  # seeds may join two groups and split another


def test_nearest_centroid_is_balanced_too() -> None:
    # Three quarters of the points fill a ball that plain k-means would give few centroids.
    rng = np.random.default_rng(2)
    points = rng.standard_normal((2000, 8)).astype(np.float32)
    points[:1500] *= 0.2
    centroids = balanced_kmeans(points, 32, seed=0).centroids
    labels, _ = nearest_centroids.nearest(points, centroids, 1)
    assert np.bincount(labels[:, 0], minlength=32).max() <= 2.5 * 2000 / 32


def test_fits_large_sets_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balanced, "SAMPLE_PER_CLUSTER", 4)
    points = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)
    found = balanced_kmeans(points, 10, seed=0)
    assert np.bincount(found.labels, minlength=10).max() <= 50


@pytest.mark.parametrize(
    ("points", "k", "iterations", "message"),
    [
        (np.zeros((0, 3)), 2, 1, r"points: shape \(0, 3\): give at least one point"),
        (np.array([[0.0], [np.nan]]), 2, 1, r"points\[1\]: NaN or infinite: give finite numbers"),
        (np.zeros((2, 1)), 0, 1, "k: 0: give at least one cluster"),
        (np.zeros((2, 1)), 1, 0, "iterations: 0: give at least one"),
    ],
)
def test_refuses_what_cannot_be_clustered(points: np.ndarray, k: int, iterations: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        balanced_kmeans(points, k, 0, iterations)


def test_refuses_too_little_room() -> None:
    with pytest.raises(ValueError, match="capacity: 2: 2 centroids need at least 3 for 5 points"):
        capacity_match(np.zeros((5, 1), np.float32), np.zeros((2, 1), np.float32), 2)
