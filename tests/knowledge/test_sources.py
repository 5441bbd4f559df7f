"""Sources: what is listed and in which order, what is passed over, and each document that must not be read."""

import os
import uuid
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from tasks.errors import CorpusError, ServiceUnavailable
from tasks.knowledge.sources import DocumentRefused, Folder, Item, PydocTopics, Source, open_source
from tasks.knowledge.sources.ordered import in_order
from tasks.storage import Storage

STORAGE = Storage("http://127.0.0.1:9")
LIMIT = 50_000_000


def refused(source: Source, item: Item, limit: int = LIMIT) -> str:
    """Return the rule by which a document is refused."""
    with pytest.raises(DocumentRefused, match=r"expected .*found .*Next:") as caught:
        source.read(item, limit)
    return caught.value.rule


def test_topics_are_listed_and_read() -> None:
    source = PydocTopics()
    items = list(source.list())
    assert len(items) == len(topics) and [item.uri for item in items] == sorted(item.uri for item in items)
    body = source.read(items[0], LIMIT)
    assert body.decode() == topics[items[0].uri.removeprefix("pydoc:topics/")] and len(body) == items[0].bytes


def test_topics_that_are_not_there_other_or_too_large() -> None:
    item = next(PydocTopics().list())
    assert refused(PydocTopics(), Item("pydoc:topics/none", "", 1)) == "document_is_readable"
    assert refused(PydocTopics(), Item(item.uri, "other", item.bytes)) == "document_holds_still"
    assert refused(PydocTopics(), item, item.bytes - 1) == "document_is_not_huge"


def filled(folder: Path, *names: str) -> Folder:
    """Return a folder of files that hold their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return Folder(folder)


def item_of(source: Source, uri: str) -> Item:
    return next(item for item in source.list() if item.uri == uri)


def test_a_folder_is_listed_in_the_byte_order_of_its_uris(tmp_path: Path) -> None:
    names = ["a/x.md", "a.txt", "a-b/c.md", "a0", "B.rst", "é.md", "z/y/x.py", "z/y.py", "Ω/a", "\U0001f600", "\uffee"]
    source = filled(tmp_path, *names)
    uris = [item.uri for item in source.list()]
    assert uris == sorted((f"file:{name}" for name in names), key=lambda uri: uri.encode())
    assert [source.read(item, LIMIT).decode() for item in source.list()] == [uri.removeprefix("file:") for uri in uris]


def test_names_that_are_not_utf8_have_names_of_their_own(tmp_path: Path) -> None:
    names = [
        b"a\xff.txt",
        b"a\\xff.txt",
        b"a\\xfe\xff.txt",
        b"a\xfe\\xff.txt",
        b"d\xff/x.md",
        b"d\\xff/x.md",
        b"a\\\\xff.txt",
    ]
    for name in names:
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name)
    source = Folder(tmp_path)
    items = list(source.list())
    uris = [item.uri for item in items]
    assert len(set(uris)) == len(names) and uris == sorted(uris)
    plain = {f"file:{name.decode()}" for name in names if b"\xff" not in name and b"\xfe" not in name}
    assert plain < set(uris), "a name that is text is its own"
    for item in items:
        if item.uri in plain:
            assert source.read(item, LIMIT).decode() == item.uri.removeprefix("file:")
        else:
            assert refused(source, item) == "document_is_readable"


def test_listing_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = filled(tmp_path, "a.md", "b/c.md")

    def never(*_args: Any, **_options: Any) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(os, "open", never)
    monkeypatch.setattr("builtins.open", never)
    monkeypatch.setattr("io.open", never)
    assert len(list(source.list())) == 2


def test_what_is_hidden_or_binary_is_passed_over_and_counted(tmp_path: Path) -> None:
    source = filled(
        tmp_path, "a.md", "b.PNG", "c/d.png", "e.tar.gz", ".env", ".git/config", ".git/x", "__pycache__/a.pyc", "noend"
    )
    assert [item.uri for item in source.list()] == ["file:a.md", "file:noend"]
    assert dict(source.ignored) == {".png": 2, ".gz": 1, "(hidden)": 3}
    list(source.list())
    assert source.ignored[".png"] == 2, "a second listing counts anew"


def test_items_are_put_in_order_through_files(tmp_path: Path) -> None:
    items = [Item(f"s3://b/{number * 7919 % 1000}é", str(number), number) for number in range(1000)]
    expected = sorted(items, key=lambda item: item.uri.encode())
    for run in (1000, 64, 1001, 7):
        assert list(in_order(iter(items), run)) == expected
    assert list(in_order(iter([]))) == []


def test_a_stamp_changes_with_the_bytes(tmp_path: Path) -> None:
    source = filled(tmp_path, "a.md")
    before = next(source.list())
    assert next(source.list()) == before
    when = (tmp_path / "a.md").stat()
    (tmp_path / "new").write_text("A.MD")
    os.utime(tmp_path / "new", ns=(when.st_atime_ns, when.st_mtime_ns))
    (tmp_path / "new").replace(tmp_path / "a.md")
    assert next(source.list()).stamp != before.stamp, "same name, length and time, another file"


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="found none"):
        list(Folder(tmp_path / "none").list())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_folder_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(CorpusError, match="Permission denied"):
        list(Folder(tmp_path).list())


def test_a_folder_that_goes_while_it_is_listed_is_told(tmp_path: Path) -> None:
    source = filled(tmp_path, "a/x.md", "b/x.md")
    listing = source.list()
    next(listing)
    (tmp_path / "b" / "x.md").unlink()
    (tmp_path / "b").rmdir()
    with pytest.raises(CorpusError, match="No such file"):
        list(listing)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    source = filled(tmp_path, "a.md")
    (tmp_path / "a.md").chmod(0)
    assert refused(source, next(source.list())) == "document_is_readable"


def test_links_are_read_inside_and_refused_outside(tmp_path: Path) -> None:
    source = filled(tmp_path / "corpus", "a.md", "sub/b.md")
    corpus = tmp_path / "corpus"
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "elsewhere").mkdir()
    (corpus / "good.md").symlink_to(corpus / "a.md")
    (corpus / "out.txt").symlink_to(tmp_path / "secret.txt")
    (corpus / "outer").symlink_to(tmp_path / "elsewhere")
    (corpus / "other").symlink_to(corpus / "sub")
    (corpus / "nothing").symlink_to(corpus / "none")
    found = {item.uri.removeprefix("file:"): item for item in source.list()}
    assert list(found) == ["a.md", "good.md", "nothing", "out.txt", "outer", "sub/b.md"]
    assert source.read(found["good.md"], LIMIT) == b"a.md"
    assert refused(source, found["out.txt"]) == refused(source, found["outer"]) == "document_stays_inside"
    assert refused(source, found["nothing"]) == "document_is_readable"
    assert dict(source.ignored) == {"(link to a folder)": 1}


@pytest.mark.parametrize("uri", ["file:../secret.txt", "file:sub/../../secret.txt", "file:/etc/hostname"])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, uri: str) -> None:
    source = filled(tmp_path / "corpus", "sub/a.md")
    (tmp_path / "secret.txt").write_text("secret")
    assert refused(source, Item(uri, "", 6)) in {"document_stays_inside", "document_is_readable"}
    assert refused(source, Item("file:../secret.txt", "", 6)) == "document_stays_inside"


def test_links_in_a_circle_are_refused_and_end(tmp_path: Path) -> None:
    source = filled(tmp_path, "sub/a.md")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    found = {item.uri: item for item in source.list()}
    assert list(found) == ["file:one", "file:sub/a.md", "file:sub/up", "file:two"]
    assert {refused(source, found[f"file:{name}"]) for name in ("one", "two", "sub/up")} == {"document_is_no_loop"}


def test_a_file_that_changed_since_it_was_listed(tmp_path: Path) -> None:
    source = filled(tmp_path, "a.md")
    item = next(source.list())
    (tmp_path / "a.md").write_text("longer than it was")
    assert refused(source, item) == "document_holds_still"
    (tmp_path / "a.md").unlink()
    assert refused(source, item) == "document_is_readable"


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = filled(tmp_path, "a.md")
    item = next(source.list())
    real, calls = os.fstat, []

    def changing(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        if found.st_ino == (tmp_path / "a.md").stat().st_ino and not calls:
            calls.append(1)
            with (tmp_path / "a.md").open("a") as file:
                file.write("!")
        return found

    monkeypatch.setattr(os, "fstat", changing)
    assert refused(source, item) == "document_holds_still"
    assert calls


def test_a_large_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").touch()
    os.truncate(tmp_path / "a.txt", 200_000_000)
    source = Folder(tmp_path)
    item = next(source.list())
    assert item.bytes == 200_000_000
    monkeypatch.setattr(os, "open", lambda *_args, **_options: pytest.fail("it was opened"))
    assert refused(source, item) == "document_is_not_huge"


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    source = Folder(tmp_path)
    assert refused(source, next(source.list())) == "document_is_readable"


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.md")).write_text("x")
    source = Folder(tmp_path)
    item = next(source.list())
    assert item.uri == "file:caf\\xe9.md"
    assert refused(source, item) == "document_is_readable"


@pytest.mark.parametrize("corpus", ["pydoc:other", "https://example.org", "gs://bucket/x"])
def test_unknown_scheme_is_refused(corpus: str) -> None:
    with pytest.raises(CorpusError, match="expected a corpus"):
        open_source(corpus, STORAGE)


def test_s3_that_is_away_is_to_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    source = open_source("s3://bucket/docs", Storage("http://127.0.0.1:9", attempts=1))
    with pytest.raises(ServiceUnavailable):
        list(source.list())
    with pytest.raises(ServiceUnavailable):
        source.read(Item("s3://bucket/docs/a", "", 1), LIMIT)


@pytest.mark.integration
def test_a_bucket(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    storage = Storage(stack.env["MILLRACE_S3_ENDPOINT_URL"])
    prefix = f"s3://{stack.env['MILLRACE_S3_BUCKET']}/tests/{uuid.uuid4()}"
    names = ["a/x.md", "a.txt", "a-b/c.md", "a0", "é?#.md", "empty.txt", "b.png", ".hidden/x"]
    for name in names:
        storage.put_bytes(f"{prefix}/{name}", b"" if name == "empty.txt" else name.encode())
    source = open_source(prefix + "/", storage)
    found = {item.uri.removeprefix(prefix + "/"): item for item in source.list()}
    assert list(found) == sorted(names[:6], key=str.encode)
    assert dict(source.ignored) == {".png": 1, "(hidden)": 1}
    assert source.read(found["é?#.md"], LIMIT).decode() == "é?#.md" and source.read(found["empty.txt"], LIMIT) == b""
    assert refused(source, found["a0"], 1) == "document_is_not_huge"
    storage.put_bytes(f"{prefix}/a0", b"A0")
    assert refused(source, found["a0"]) == "document_holds_still"
    storage.delete_prefix(f"{prefix}/a.txt")
    assert refused(source, found["a.txt"]) == "document_is_readable"
    with pytest.raises(CorpusError):
        list(open_source("s3://no-such-bucket-here/x", storage).list())
