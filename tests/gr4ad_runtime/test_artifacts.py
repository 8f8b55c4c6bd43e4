from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.errors import (
    AlreadyExistsError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "made", "weights")


def make_folder(path: Path, content: str) -> Path:
    (path / "parts").mkdir(parents=True)
    (path / "weights.bin").write_text(content)
    (path / "parts" / "a.txt").write_text("a")
    (path / "manifest.json").write_text(json.dumps({"content": content}))
    return path


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, artifact_store_url: str) -> Iterator[ArtifactStore]:
    yield ArtifactStore(artifact_store_url if request.param == "local" else "memory://bucket/prefix")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def content(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def test_what_is_published_is_fetched(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    assert not store.exists("policies/p1")
    store.publish_folder(folder, "policies/p1")
    assert store.exists("policies/p1")
    fetched = store.fetch_folder("policies/p1", tmp_path / "fetched")
    assert content(fetched) == content(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"made", "fetched", "artifacts"}


def test_names_are_listed(store: ArtifactStore, folder: Path) -> None:
    assert store.list_names("policies") == []
    for name in ("policies/p2", "policies/p1", "codebooks/c1"):
        store.publish_folder(folder, name)
    assert store.list_names("policies") == ["policies/p1", "policies/p2"]


def test_publishing_again_is_allowed_for_the_same_content_only(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    assert store.publish_folder(folder, "p") == store.publish_folder(folder, "p")
    other = make_folder(tmp_path / "other", "WEIGHTS")
    with pytest.raises(AlreadyExistsError, match="^artifact: p: published with other content"):
        store.publish_folder(other, "p")
    assert content(store.fetch_folder("p", tmp_path / "fetched")) == content(folder)


def test_a_folder_without_a_manifest_is_refused(store: ArtifactStore, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(InvalidArgumentError, match=r"manifest\.json"):
        store.publish_folder(folder, "p")
    assert not store.exists("p")


@pytest.mark.parametrize("name", ["", "/etc", "../up", "a//b", "a/../b", ".hidden", "a\\b"])
def test_names_stay_in_the_store(store: ArtifactStore, folder: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="^artifact: "):
        store.publish_folder(folder, name)


def test_an_unknown_name_is_told(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="^artifact: nothing: not in the store"):
        store.fetch_folder("nothing", tmp_path / "fetched")


def test_fetching_never_overwrites(store: ArtifactStore, folder: Path) -> None:
    store.publish_folder(folder, "p")
    with pytest.raises(AlreadyExistsError, match="exists; fetch into a new one"):
        store.fetch_folder("p", folder)


def test_an_unknown_kind_of_store_is_told() -> None:
    with pytest.raises(InvalidArgumentError, match="^artifact_store: nosuch://x: "):
        ArtifactStore("nosuch://x")


def test_the_manifest_comes_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, order = ArtifactStore("memory://ordered"), []
    put = MemoryFileSystem.put_file

    def record(self: MemoryFileSystem, local: str, remote: str, **options: object) -> object:
        order.append(remote.rpartition("/")[2])
        assert not store.exists("p")
        return put(self, local, remote, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", record)
    store.publish_folder(folder, "p")
    assert sorted(order[:-1]) == ["a.txt", "weights.bin"]
    assert order[-1] == "manifest.json"
    MemoryFileSystem.store.clear()


def test_a_reader_sees_all_or_nothing(artifact_store_url: str, tmp_path: Path) -> None:
    store = ArtifactStore(artifact_store_url)
    big = make_folder(tmp_path / "big", "w" * 3_000_000)
    stop, partial = threading.Event(), []

    def look() -> None:
        target = Path(artifact_store_url)
        while not stop.is_set():
            for seen in target.glob("p*"):
                if len(list(seen.rglob("*.*"))) != 3 or (seen / "weights.bin").stat().st_size != 3_000_000:
                    partial.append(seen)

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(6):
        store.publish_folder(big, f"p{number}")
    stop.set()
    looking.join()
    assert partial == []


def test_of_two_publishers_one_wins(artifact_store_url: str, tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / f"made{number}", str(number)) for number in range(4)]
    outcomes: list[object] = []
    gate = threading.Barrier(len(folders))

    def publish(path: Path) -> None:
        gate.wait()
        try:
            outcomes.append(ArtifactStore(artifact_store_url).publish_folder(path, "p"))
        except AlreadyExistsError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=publish, args=(path,)) for path in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, str) for outcome in outcomes) == 1
    assert content(Path(artifact_store_url) / "p") in [content(path) for path in folders]
    assert [path.name for path in Path(artifact_store_url).iterdir()] == ["p"]


def test_a_full_disk_is_told_and_leaves_nothing(
    artifact_store_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(artifact_store_url)
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> object:
        if source.name == "weights.bin":
            target.write_text("w")
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ResourceExhaustedError, match="no disk space for p: free some; nothing was published"):
        store.publish_folder(folder, "p")
    assert list(Path(artifact_store_url).iterdir()) == []


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="^artifact_store: .*cannot read or write p: File exists"):
        ArtifactStore(str(tmp_path / "file")).publish_folder(folder, "p")


def test_a_file_cut_short_is_told(
    artifact_store_url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(artifact_store_url)
    store.publish_folder(folder, "p")
    files = store._files

    def promised(path: str) -> dict[str, int]:
        return {name: size + (name == "weights.bin") for name, size in files(path).items()}

    monkeypatch.setattr(store, "_files", promised)
    with pytest.raises(DataLossError, match=r"^p/weights\.bin: 7 bytes: should have 8"):
        store.fetch_folder("p", tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
