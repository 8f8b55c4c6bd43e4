"""Fitting from folders with interactions and with other encoders; `test_codebook.py` has the commands."""

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from gr4ad_core.learning.data_folder import read_items
from gr4ad_core.learning.embedding import EncoderFolderError
from gr4ad_core.sid.business_code import BusinessLevel
from gr4ad_core.sid.codebook import Codebook, load_codebook
from gr4ad_core.sid.text_encoder import TextEncoder
from gr4ad_tools import codebook_fit
from gr4ad_tools.codebook_fit import FitOptions, content_of, fit_codebook_from_folder, signals_of
from gr4ad_tools.simulate import Market

SIZES = (16, 8, 8)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("market")
    Market("tiny", 1).write_folder(folder)
    return folder


def fitted(store: str, codebook_id: str) -> Codebook:
    return load_codebook(Path(store) / "codebooks" / codebook_id)


def manifest_bytes(store: str, codebook_id: str) -> bytes:
    return (Path(store) / "codebooks" / codebook_id / "codebook.npz").read_bytes()


def test_learns_from_what_users_chose_together(market: Path, artifact_store_url: str) -> None:
    both = fit_codebook_from_folder(market, artifact_store_url, "both", FitOptions(level_sizes=SIZES, holdout_events=2))
    content = fit_codebook_from_folder(
        market, artifact_store_url, "content", FitOptions(level_sizes=SIZES, content_only=True)
    )
    assert both.pairs > 100
    assert content.pairs == 0
    tuned, plain = fitted(artifact_store_url, "both"), fitted(artifact_store_url, "content")
    assert (tuned.holdout_events, plain.holdout_events) == (2, None)
    contents = [content_of(item) for item in read_items(market)]
    assert not np.allclose(tuned.encode_ads(contents), plain.encode_ads(contents), atol=0.1)


def test_business_codes_show_the_signals_asked_for_in_a_level_that_holds_them(
    market: Path, artifact_store_url: str
) -> None:
    signals = ("ad_type", "conversion_type")
    fit_codebook_from_folder(
        market, artifact_store_url, "both", FitOptions(content_only=True, business_signals=signals)
    )
    codebook = fitted(artifact_store_url, "both")
    assert codebook.business == BusinessLevel(512, signals)
    ads = [signals_of(item) for item in read_items(market)]
    sids = codebook.assign(codebook.encode_ads([content_of(item) for item in read_items(market)]), ads, lambda _: set())
    homes = [code in codebook.business.bucket_of(ad) for ad, code in zip(ads, sids[:, -1].tolist(), strict=True)]
    assert np.mean(homes) > 0.9
    assert len({ad.ad_type for ad in ads}) > 1


def test_a_signal_that_is_none_is_refused_before_anything_is_fitted(
    market: Path, artifact_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextEncoder, "fit", lambda *args: pytest.fail("fitted an encoder"))
    with pytest.raises(ValueError, match="business_signals: colour: give some of"):
        fit_codebook_from_folder(market, artifact_store_url, "odd", FitOptions(business_signals=("colour",)))


def test_held_out_events_teach_nothing(market: Path) -> None:
    less = codebook_fit.positive_pairs(market, 2, 0)
    assert less is not None
    assert less.nnz < codebook_fit.positive_pairs(market, 0, 0).nnz
    assert codebook_fit.positive_pairs(market, 10_000, 0) is None


def test_an_interrupted_fit_goes_on_where_it_was(
    market: Path, artifact_store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, work = FitOptions(level_sizes=SIZES), tmp_path / "work"
    fit_codebook_from_folder(market, artifact_store_url, "whole", options)
    fit_codebook = codebook_fit.fit_codebook

    def interrupted(*args: Any, keep: Any, **kwargs: Any) -> Codebook:
        def keep_one(name: str, make: Any) -> Any:
            if name == "level1":
                raise KeyboardInterrupt
            return keep(name, make)

        return fit_codebook(*args, keep=keep_one, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(codebook_fit, "fit_codebook", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit_codebook_from_folder(market, artifact_store_url, "resumed", options, work)
    assert {path.stem for path in work.glob("*.npz")} == {"encoder", "tuned-encoder", "level0"}

    def done_before(*args: Any, **kwargs: Any) -> NoReturn:
        pytest.fail("a finished step was done again")

    with monkeypatch.context() as patched:
        patched.setattr(codebook_fit, "tune_text_encoder", done_before)
        patched.setattr(TextEncoder, "fit", done_before)
        fit_codebook_from_folder(market, artifact_store_url, "resumed", options, work)
    assert manifest_bytes(artifact_store_url, "resumed") == manifest_bytes(artifact_store_url, "whole")
    assert not work.exists()


def test_steps_of_another_fit_are_not_used(market: Path, artifact_store_url: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    steps = codebook_fit.FinishedSteps.open(work, market, FitOptions(seed=1))
    steps.keep("encoder", lambda: {"columns": np.zeros(1)})
    fit_codebook_from_folder(market, artifact_store_url, "other", FitOptions(seed=2, level_sizes=SIZES), work)
    assert fitted(artifact_store_url, "other").encoder is not None


def test_a_folder_of_somebody_else_is_left_alone(market: Path, artifact_store_url: str, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"work: .*: holds other files: name an empty or a new folder"):
        fit_codebook_from_folder(market, artifact_store_url, "other", FitOptions(level_sizes=SIZES), tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_with_an_encoder_of_a_folder_ads_bring_their_vectors(
    market: Path, artifact_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Encoder:
        """Stands in for a transformer; `test_embedding.py` has real ones."""

        def __init__(self, folder: Path) -> None:
            self._encoder = TextEncoder.fit(["a shoe", "a hat", "a scarf in red"], 12, 0)

        def encode(self, texts: list[str], on_progress: Any) -> Any:
            return self._encoder.encode(texts)

    monkeypatch.setattr(codebook_fit, "HuggingFaceEncoder", Encoder)
    found = fit_codebook_from_folder(
        market, artifact_store_url, "folder", FitOptions(level_sizes=SIZES, encoder=market)
    )
    codebook = fitted(artifact_store_url, "folder")
    assert found.pairs > 0
    assert codebook.encoder is None
    assert codebook.head is not None
    assert codebook.embedding_dim == 12


def test_an_encoder_that_is_none_is_refused(market: Path, artifact_store_url: str) -> None:
    with pytest.raises(EncoderFolderError, match=r"encoder: .*config\.json"):
        fit_codebook_from_folder(market, artifact_store_url, "folder", FitOptions(encoder=market))
