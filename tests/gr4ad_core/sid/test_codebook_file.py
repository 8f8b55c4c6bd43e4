import json
from pathlib import Path

import numpy as np
import pytest
from gr4ad_core.sid.business_code import BusinessLevel
from gr4ad_core.sid.codebook import (
    Codebook,
    CodebookConfig,
    CodebookFileError,
    fit_codebook,
    load_codebook,
    save_codebook,
)
from gr4ad_core.sid.codebook_file import write_folder
from gr4ad_core.sid.text_encoder import TextEncoder

TEXTS = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("shoe", "hat", "scarf")]


@pytest.fixture
def codebook() -> Codebook:
    encoder = TextEncoder.fit(TEXTS, 5, 0)
    config = CodebookConfig(level_sizes=(4, 3, 8), business_signals=("ad_type",), embedding_dim=5)
    return fit_codebook(encoder.encode(TEXTS), config, encoder, "spring")


@pytest.fixture
def folder(tmp_path: Path, codebook: Codebook) -> Path:
    save_codebook(codebook, tmp_path / "spring")
    return tmp_path / "spring"


def test_comes_back_as_it_was(folder: Path, codebook: Codebook) -> None:
    loaded = load_codebook(folder)
    assert (loaded.codebook_id, loaded.level_sizes, loaded.embedding_dim) == ("spring", (4, 3, 8), 5)
    assert loaded.business == BusinessLevel(8, ("ad_type",))
    assert loaded.encoder is not None
    new = ["a purple hat", "unknown words"]
    np.testing.assert_array_equal(loaded.encoder.encode(new), codebook.encoder.encode(new))  # type: ignore[union-attr]
    vectors = codebook.encoder.encode(TEXTS)  # type: ignore[union-attr]
    np.testing.assert_array_equal(loaded.quantise(vectors), codebook.quantise(vectors))


def test_needs_no_encoder(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32)
    save_codebook(fit_codebook(vectors, CodebookConfig(level_sizes=(2, 8), embedding_dim=2)), tmp_path)
    assert load_codebook(tmp_path).encoder is None


def test_before_signals_could_be_configured_it_was_the_conversion_type(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["business_signals"]
    path.write_text(json.dumps(manifest))
    assert load_codebook(folder).business == BusinessLevel(8, ("conversion_type",))


def test_manifest_says_what_the_file_is(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.keys() == {
        "codebook_id",
        "level_sizes",
        "embedding_dim",
        "business_signals",
        "sha256",
        "format_version",
        "holdout_events",
        "fit_errors",
    }
    assert (manifest["level_sizes"], manifest["embedding_dim"]) == ([4, 3, 8], 5)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_refuses_a_damaged_file(folder: Path, damage: str) -> None:
    path = folder / "codebook.npz"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"truncate": len(content) - 7, "flip": None, "empty": 0}[damage]])
    with pytest.raises(CodebookFileError, match=r"codebook\.npz: expected sha256 .* found sha256 .*publish") as caught:
        load_codebook(folder)
    assert caught.value.expected != caught.value.found


def test_refuses_a_missing_file(folder: Path, tmp_path: Path) -> None:
    (folder / "codebook.npz").unlink()
    with pytest.raises(CodebookFileError, match=r"codebook\.npz: expected the arrays .* found no such file"):
        load_codebook(folder)
    with pytest.raises(CodebookFileError, match=r"manifest\.json: .* no such file: name the folder of a codebook"):
        load_codebook(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 99, "expected format_version 1, found format_version 99: read it with the release"),
        ("format_version", None, "expected format_version 1, found format_version None"),
        ("level_sizes", "4,3", "expected level_sizes .* found '4,3'"),
        ("level_sizes", [4], r"expected level_sizes .* found \[4\]"),
        ("level_sizes", [4, "x", 8], "expected level_sizes"),
        ("level_sizes", [4, 9, 8], r"expected level1 of shape \(9, 5\), found \(3, 5\)"),
        ("level_sizes", [4, 3, 2, 8], r"expected level2 of shape \(2, 5\), found \(0,\)"),
        ("embedding_dim", 6, r"expected level0 of shape \(4, 6\), found \(4, 5\)"),
        ("codebook_id", "", "expected codebook_id"),
        ("business_signals", [], r"expected business_signals .* found \[\]"),
        ("business_signals", ["bid"], "manifest.json: expected a business level, found business_signals: bid"),
        ("sha256", None, "expected sha256"),
    ],
)
def test_refuses_a_manifest_that_says_otherwise(folder: Path, field: str, value: object, message: str) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(CodebookFileError, match=message):
        load_codebook(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"format_version": 1}', "\udcff"])
def test_refuses_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CodebookFileError, match=r"manifest\.json: expected"):
        load_codebook(folder)


def test_refuses_arrays_of_other_things(tmp_path: Path) -> None:
    manifest = {"codebook_id": "odd", "level_sizes": [2, 8], "embedding_dim": 2}
    level = np.zeros((2, 2), dtype=np.float32)
    write_folder(tmp_path / "encoder", manifest, {"level0": level, "encoder.idf": np.zeros(3)})
    with pytest.raises(CodebookFileError, match="expected the arrays of an encoder and a head"):
        load_codebook(tmp_path / "encoder")
    level[1, 1] = np.nan
    write_folder(tmp_path / "nan", manifest, {"level0": level})
    with pytest.raises(CodebookFileError, match="expected finite numbers in level0"):
        load_codebook(tmp_path / "nan")
