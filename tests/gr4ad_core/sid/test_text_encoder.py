import numpy as np
import pytest
from gr4ad_core.sid import text_encoder
from gr4ad_core.sid.text_encoder import TextEncoder
from gr4ad_core.sid.text_features import FeatureHasher, feature_names
from hypothesis import given, settings
from hypothesis import strategies as st

COLOURS = ("red", "crimson", "pink", "blue", "green")
TEXTS = [
    f"{colour} {thing} number {number}"
    for colour in COLOURS
    for thing in ("lipstick with shine", "shampoo for dry hair", "trail running shoe")
    for number in range(4)
]
ENCODER = TextEncoder.fit(TEXTS, dim=8, seed=0)


@given(st.lists(st.text(max_size=40) | st.sampled_from(TEXTS), max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_text_gets_a_unit_vector_that_does_not_depend_on_its_neighbours(texts: list[str]) -> None:
    vectors = ENCODER.encode(texts)
    assert vectors.shape == (len(texts), 8)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for row, text in enumerate(texts):
        np.testing.assert_array_equal(ENCODER.encode([text])[0], vectors[row])


def test_texts_of_one_topic_are_nearer_than_texts_of_two() -> None:
    vectors = ENCODER.encode(["scarlet lipstick shine", "lipstick with gloss", "running shoe for trails", "dry hair"])
    cosine = vectors @ vectors.T
    assert cosine[0, 1] > cosine[0, 2:].max() + 0.3


def test_an_inflected_word_is_recognised_by_its_characters() -> None:
    vectors = ENCODER.encode(["lipsticks", "lipstick", "shampoo"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_texts_without_a_known_word_get_directions_of_their_own() -> None:
    vectors = ENCODER.encode(["qqq", "zzz", "qqq", ""])
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert vectors[0] @ vectors[1] < 0.99
    assert np.isfinite(vectors).all()


def test_same_seed_same_bytes() -> None:
    again = TextEncoder.fit(TEXTS, dim=8, seed=0)
    for name, array in ENCODER.arrays().items():
        assert again.arrays()[name].tobytes() == array.tobytes(), name


def test_comes_back_from_its_arrays() -> None:
    restored = TextEncoder.from_arrays(ENCODER.arrays())
    assert restored.dim == 8
    np.testing.assert_array_equal(restored.encode(TEXTS), ENCODER.encode(TEXTS))


def test_directions_are_those_of_the_exact_decomposition() -> None:
    # Three groups of texts that share no feature but the instruction: three leading directions, well apart.
    counts = FeatureHasher(text_encoder.HASH_BUCKETS).counts(TEXTS)
    frequency = np.bincount(counts.indices, minlength=text_encoder.HASH_BUCKETS)
    columns = np.flatnonzero(frequency >= 2)
    tf_idf = (1 + np.log(np.maximum(counts.toarray()[:, columns], 1e-9))) * (counts.toarray()[:, columns] > 0)
    tf_idf *= np.log((1 + len(TEXTS)) / (1 + frequency[columns])) + 1
    tf_idf /= np.linalg.norm(tf_idf, axis=1, keepdims=True)
    left, singular, _ = np.linalg.svd(tf_idf, full_matrices=False)
    expected = left[:, :3] * singular[:3] ** text_encoder.SPECTRUM_POWER
    vectors = TextEncoder.fit(TEXTS, dim=3, seed=0).encode(TEXTS)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-3)


def test_fits_on_a_sample_of_many_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "MAX_FIT_TEXTS", 20)
    monkeypatch.setattr(text_encoder, "MAX_FEATURES", 30)
    encoder = TextEncoder.fit(TEXTS, dim=4, seed=0)
    assert len(encoder.arrays()["columns"]) == 30
    assert np.isfinite(encoder.encode(TEXTS)).all()


@pytest.mark.parametrize("texts", [["only one text"], ["", ""], ["!", "?"], ["a b", "c d", "e f"]])
def test_fits_on_texts_that_share_nothing(texts: list[str]) -> None:
    vectors = TextEncoder.fit(texts, dim=16, seed=0).encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_features_ignore_case_width_and_line_ends() -> None:
    assert list(feature_names("ＦＯＯ Bar")) == list(feature_names("foo bar"))
    assert "p bar baz" not in set(feature_names("foo bar\nbaz"))


@pytest.mark.parametrize(
    ("texts", "dim", "message"),
    [([], 8, "texts: empty: give at least one text"), (["a"], 0, "dim: 0: give a positive vector length")],
)
def test_refuses_what_cannot_be_fitted(texts: list[str], dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextEncoder.fit(texts, dim, 0)


def test_refuses_arrays_that_do_not_fit_together() -> None:
    arrays = ENCODER.arrays()
    with pytest.raises(ValueError, match="encoder: idf: missing"):
        TextEncoder.from_arrays({name: array for name, array in arrays.items() if name != "idf"})
    with pytest.raises(ValueError, match=r"encoder: shapes .* must be \[F\], \[F\], \[F, D\]"):
        TextEncoder.from_arrays({**arrays, "idf": arrays["idf"][:-1]})
