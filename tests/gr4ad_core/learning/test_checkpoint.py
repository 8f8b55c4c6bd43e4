"""Checkpoints: they come back as they went, and everything that does not match is refused by name."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gr4ad_core.learning import checkpoint
from gr4ad_core.learning.checkpoint import (
    MANIFEST,
    WEIGHTS,
    CheckpointError,
    load_checkpoint,
    read_manifest,
    save_checkpoint,
)
from gr4ad_core.learning.presets import training_preset
from gr4ad_core.model.lazy_ar import LazyAr
from safetensors.torch import load_file, save

MODEL, RECIPE = training_preset("tiny", (6, 5, 4))


@pytest.fixture
def model() -> LazyAr:
    torch.manual_seed(0)
    model = LazyAr(MODEL)
    model.set_ecpm_buckets(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.5, 2.5, 9.0]))
    return model


@pytest.fixture
def folder(tmp_path: Path, model: LazyAr) -> Path:
    save_checkpoint(
        tmp_path / "policies" / "p1", model, "p1", "codebook-7", {"held_out_recall@10": 0.25}, RECIPE.to_dict()
    )
    return tmp_path / "policies" / "p1"


def edit_manifest(folder: Path, **changes: object) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, **changes}))


def replace_weights(folder: Path, weights: bytes) -> None:
    (folder / WEIGHTS).write_bytes(weights)
    edit_manifest(folder, sha256=hashlib.sha256(weights).hexdigest())


def refused(folder: Path, **expected: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, **expected)
    for part in (caught.value.field, str(caught.value.value), str(caught.value.expected), caught.value.remedy):
        assert part
        assert part in str(caught.value)
    return caught.value


def test_policy_comes_back_bit_by_bit_and_ready_to_serve(folder, model):
    loaded, manifest = load_checkpoint(folder, expected_codebook_id="codebook-7")
    assert loaded.config == model.config
    assert not loaded.training
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.ecpm_means.tolist() == [0.5, 1.5, 2.5, 9.0]
    assert manifest.policy_id == "p1"
    assert manifest.metrics == {"held_out_recall@10": 0.25}
    assert manifest.training_config["epochs"] == RECIPE.epochs
    assert manifest.sha256 == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert read_manifest(folder) == manifest


def test_nothing_but_the_checkpoint_is_left_behind(folder):
    assert [path.name for path in folder.parent.iterdir()] == ["p1"]
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, WEIGHTS]


def test_same_weights_have_the_same_sha256(folder, model, tmp_path):
    again = save_checkpoint(tmp_path / "again", model, "p2", "codebook-7", {}, {})
    assert again.sha256 == read_manifest(folder).sha256


def test_loading_does_not_touch_the_callers_generator(folder):
    before = torch.random.get_rng_state()
    load_checkpoint(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_codebook_is_refused(folder):
    error = refused(folder, expected_codebook_id="codebook-8")
    assert (error.field, error.value, error.expected) == ("codebook_id", "codebook-7", "codebook-8")


def test_other_sha256_is_refused(folder):
    assert refused(folder, expected_sha256="0" * 64).field == "sha256"


def test_truncated_weights_are_refused(folder):
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    assert refused(folder).field == f"sha256 of {WEIGHTS}"


def test_one_flipped_bit_is_refused(folder):
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    assert refused(folder).field == f"sha256 of {WEIGHTS}"


def test_weights_that_are_no_safetensors_are_refused(folder):
    replace_weights(folder, b"not tensors")
    assert refused(folder).field == WEIGHTS


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    error = refused(folder)
    assert error.field == name
    assert error.value == "No such file or directory"


def test_missing_folder_is_refused(tmp_path):
    assert refused(tmp_path / "nowhere").field == MANIFEST


def test_truncated_manifest_is_refused(folder):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])
    assert refused(folder).field == MANIFEST


def test_manifest_that_is_no_object_is_refused(folder):
    (folder / MANIFEST).write_text("[]")
    assert refused(folder).field == MANIFEST


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("format_version", 2, "format_version"),
        ("policy_id", 7, "manifest.json policy_id"),
        ("metrics", None, "manifest.json metrics"),
    ],
)
def test_manifest_field_that_does_not_match_is_refused(folder, field, value, named):
    edit_manifest(folder, **{field: value})
    assert refused(folder).field == named


@pytest.mark.parametrize(
    "changes", [{"n_heads": 5}, {"width": 3}, {"level_sizes": None}, {"d_model": "wide"}, {"level_sizes": []}]
)
def test_model_config_that_makes_no_model_is_refused(folder, changes):
    config = json.loads((folder / MANIFEST).read_text())["model_config"]
    edit_manifest(folder, model_config={**config, **changes})
    assert refused(folder).field == "model_config"


def test_model_config_of_another_shape_is_refused(folder):
    edit_manifest(folder, model_config=replace(MODEL, d_ff=MODEL.d_ff * 2).to_dict())
    assert refused(folder).field.startswith("tensor ")


def test_missing_tensor_is_refused(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors["bos"]
    replace_weights(folder, save(tensors))
    error = refused(folder)
    assert (error.field, error.value) == ("tensor bos", "absent")


def test_weights_that_are_not_finite_are_neither_loaded_nor_saved(folder, model, tmp_path):
    tensors = load_file(folder / WEIGHTS)
    tensors["bos"][0] = float("nan")
    replace_weights(folder, save(tensors))
    assert refused(folder).field == "tensor bos"
    with torch.no_grad():
        model.bos[0] = float("inf")
    with pytest.raises(CheckpointError, match=r"tensor bos: 1 NaN or infinite"):
        save_checkpoint(tmp_path / "bad", model, "p", "c", {}, {})
    assert not (tmp_path / "bad").exists()


def test_metric_that_is_no_number_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"metrics: .*leave out what was not measured"):
        save_checkpoint(tmp_path / "bad", model, "p", "c", {"loss": float("nan")}, {})


def test_existing_folder_is_never_overwritten(folder, model):
    with pytest.raises(CheckpointError, match=r"folder: .*never overwritten"):
        save_checkpoint(folder, model, "p1", "codebook-7", {}, {})


def test_full_disk_leaves_nothing_behind(model, tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(CheckpointError, match=r"free space.*No space left"):
        save_checkpoint(tmp_path / "new", model, "p", "c", {}, {})
    assert list(tmp_path.iterdir()) == []
