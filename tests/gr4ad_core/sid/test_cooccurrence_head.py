import numpy as np
import pytest
from gr4ad_core.sid import cooccurrence_head
from gr4ad_core.sid.codebook import CodebookConfig, fit_codebook, load_codebook, save_codebook
from gr4ad_core.sid.cooccurrence_head import CooccurrenceHead


def random_head(dim: int, hidden: int, seed: int) -> CooccurrenceHead:
    rng = np.random.default_rng(seed)
    shapes = ((dim, hidden), (hidden,), (hidden, dim), (dim,))
    return CooccurrenceHead(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes))


def test_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    head = random_head(5, 7, 0)
    vectors = np.random.default_rng(1).standard_normal((9, 5)).astype(np.float32)
    monkeypatch.setattr(cooccurrence_head, "CHUNK", 4)
    found = head(vectors)
    arrays = head.arrays()
    for row, vector in enumerate(vectors):
        x = vector / np.linalg.norm(vector)
        z = x + arrays["w2"].T @ np.maximum(arrays["w1"].T @ x + arrays["b1"], 0.0) + arrays["b2"]
        np.testing.assert_allclose(found[row], z / np.linalg.norm(z), rtol=1e-5, atol=1e-6)


def test_a_vector_of_zeros_gives_numbers() -> None:
    assert np.isfinite(random_head(4, 3, 0)(np.zeros((1, 4), dtype=np.float32))).all()


def test_refuses_arrays_that_do_not_fit() -> None:
    arrays = random_head(4, 3, 0).arrays()
    with pytest.raises(ValueError, match="head: b1: missing"):
        CooccurrenceHead.from_arrays({name: array for name, array in arrays.items() if name != "b1"})
    with pytest.raises(ValueError, match=r"must be \[D, H\], \[H\], \[H, D\], \[D\]"):
        CooccurrenceHead.from_arrays(arrays | {"b2": np.zeros(3)})


def test_a_codebook_quantises_what_the_head_makes_and_keeps_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    head = random_head(4, 8, 2)
    vectors = np.random.default_rng(3).standard_normal((50, 4)).astype(np.float32)
    config = CodebookConfig(level_sizes=(4, 4, 8), embedding_dim=4)
    with_head = fit_codebook(vectors, config, head=head)
    by_hand = fit_codebook(head(vectors), config)
    np.testing.assert_array_equal(with_head.quantise(vectors), by_hand.quantise(head(vectors)))
    np.testing.assert_array_equal(with_head.nearest_codes(vectors, 3), by_hand.nearest_codes(head(vectors), 3))
    assert (with_head.quantise(vectors) != fit_codebook(vectors, config).quantise(vectors)).any()

    with_head.holdout_events = 2
    save_codebook(with_head, tmp_path)
    loaded = load_codebook(tmp_path)
    assert loaded.holdout_events == 2
    np.testing.assert_array_equal(loaded.quantise(vectors), with_head.quantise(vectors))


def test_a_head_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head\.dim: 5: must be embedding_dim 4"):
        fit_codebook(np.ones((3, 4)), CodebookConfig(level_sizes=(2, 2), embedding_dim=4), head=random_head(5, 3, 0))
