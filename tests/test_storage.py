"""Storage against a real S3: digests, missing and damaged bytes, and a server that is away."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import BadInput, ManifestError, ServiceUnavailable
from tasks.storage import Storage, split_uri


def test_a_uri_is_split() -> None:
    assert split_uri("s3://bucket/a/b c") == ("bucket", "a/b c")
    assert split_uri("s3://bucket//what?#1;2.md") == ("bucket", "/what?#1;2.md")


@pytest.mark.parametrize("uri", ["bucket/key", "file:///x", "s3:///key", ""])
def test_anything_else_is_refused(uri: str) -> None:
    with pytest.raises(BadInput, match="s3://bucket/key"):
        split_uri(uri)


def test_a_server_that_is_away_is_to_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(ServiceUnavailable, match="make status"):
        Storage("http://127.0.0.1:9").get_bytes("s3://bucket/key")


@pytest.fixture
def storage(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    return Storage(stack.env["MILLRACE_S3_ENDPOINT_URL"])


@pytest.fixture
def place(stack: Any) -> str:
    return f"s3://{stack.env['MILLRACE_S3_BUCKET']}/tests/{uuid.uuid4()}"


@pytest.mark.integration
def test_rows_come_back_and_are_counted(storage: Storage, place: str) -> None:
    rows = [{"id": 1, "text": "Grüße\u2028"}, {"id": 2, "text": ""}]
    artifact = storage.put_rows(f"{place}/rows.jsonl", rows)
    assert artifact.rows == 2
    assert list(storage.get_rows(artifact)) == rows
    storage.verify(artifact)


@pytest.mark.integration
def test_a_folder_comes_back_as_it_was(storage: Storage, place: str, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.bin").write_bytes(b"\0" * 10_000_000)
    artifacts = storage.put_folder(place, tmp_path / "in")
    storage.get_folder(artifacts, tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "a.bin").stat().st_size == 10_000_000


@pytest.mark.integration
def test_a_name_that_leaves_the_folder_is_refused(storage: Storage, place: str, tmp_path: Path) -> None:
    artifact = storage.put_bytes(f"{place}/x", b"x")
    with pytest.raises(ManifestError, match="inside the folder"):
        storage.get_folder({"../x": artifact}, tmp_path / "out")


@pytest.mark.integration
def test_missing_and_changed_bytes_are_told(storage: Storage, place: str) -> None:
    artifact = storage.put_bytes(f"{place}/a", b"one")
    storage.put_bytes(f"{place}/a", b"two")
    with pytest.raises(ManifestError, match="expected 3 bytes with sha256"):
        storage.verify(artifact)
    with pytest.raises(ManifestError, match="found sha256"):
        storage.get(artifact)
    with pytest.raises(ManifestError, match="found nothing"):
        storage.verify(artifact.model_copy(update={"uri": f"{place}/none"}))


@pytest.mark.integration
def test_wrong_credentials_are_bad_input(
    stack: Any, storage: Storage, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(BadInput, match="check bucket, credentials and policy"):
        Storage(stack.env["MILLRACE_S3_ENDPOINT_URL"]).put_bytes(f"{place}/a", b"x")


@pytest.mark.integration
def test_one_of_several_words_is_found_across_blocks(storage: Storage, place: str) -> None:
    storage.put_bytes(f"{place}/large", b"." * ((1 << 20) - 2) + b"kettle" + b"." * 10)
    assert storage.contains(f"{place}/large", b"pot", b"kettle")
    assert not storage.contains(f"{place}/large", b"pot", b"kettles")


@pytest.mark.integration
def test_a_prefix_is_listed_and_deleted(storage: Storage, place: str) -> None:
    for name in ("a", "b"):
        storage.put_bytes(f"{place}/folder/{name}", b"x")
    assert [uri.rsplit("/", 1)[1] for uri, _size, _etag in storage.list(f"{place}/folder/")] == ["a", "b"]
    assert storage.delete_prefix(f"{place}/folder/") == 2
    assert not storage.exists(f"{place}/folder/a")
