"""Sources that need nothing running."""

import os
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from tasks.errors import CorpusError
from tasks.knowledge.sources import Folder, PydocTopics, open_source
from tasks.storage import Storage

STORAGE = Storage("http://127.0.0.1:9")


def test_topics_are_listed_and_read() -> None:
    items = list(PydocTopics().list())
    assert len(items) == len(topics)
    assert PydocTopics().read(items[0].uri).decode() == topics[items[0].uri.removeprefix("pydoc:topics/")]
    assert items[0].bytes == len(PydocTopics().read(items[0].uri))


def test_topic_that_is_not_there() -> None:
    with pytest.raises(CorpusError, match="pydoc:topics/none"):
        PydocTopics().read("pydoc:topics/none")


def test_folder_lists_text_files_by_relative_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "sub/a.MD", "c.rst", "d.pdf", "e"):
        (tmp_path / name).write_text(name)
    items = list(Folder(tmp_path).list())
    assert [item.uri for item in items] == ["file:b.txt", "file:c.rst", "file:sub/a.MD"]
    before = items[0].sha256
    (tmp_path / "b.txt").write_text("B.TXT")
    assert next(Folder(tmp_path).list()).sha256 != before, "same length, same name, other bytes"


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="found none"):
        list(Folder(tmp_path / "none").list())


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(CorpusError, match="leads out"):
        list(Folder(corpus).list())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_folder_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(CorpusError, match="Permission denied"):
        list(Folder(tmp_path).list())


def test_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "none.txt")
    with pytest.raises(CorpusError):
        list(Folder(tmp_path).list())


@pytest.mark.parametrize("corpus", ["pydoc:other", "https://example.org", "gs://bucket/x"])
def test_unknown_scheme_is_refused(corpus: str) -> None:
    with pytest.raises(CorpusError, match="expected a corpus"):
        open_source(corpus, STORAGE)
