"""Documents that kill, occupy or starve the process they are taken apart in; and the process itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tasks.errors import MillraceError
from tasks.knowledge.extraction import DocumentRefused, Extractor, extract
from tasks.knowledge.extraction.wire import packed, unpacked
from tasks.settings import REPOSITORY
from tests.knowledge import hostile

PDF = hostile.pdf(["Chapter one\nText."], title="Guide")


@pytest.fixture
def extractor() -> Iterator[Extractor]:
    with Extractor() as made:
        yield made


def refusal(extractor: Extractor, uri: str, body: bytes) -> DocumentRefused:
    with pytest.raises(DocumentRefused, match=r"expected .*found .*Next:") as caught:
        extractor.extract(uri, body)
    return caught.value


@pytest.mark.parametrize(
    ("uri", "body"),
    [
        ("file:a.pdf", PDF),
        ("file:a.docx", hostile.docx()),
        ("file:a.md", b"# One\n\nText\n"),
        ("file:a.txt", "Grüße ".encode() * 300_000),
        ("file:a.jsonl", b'{"name": "\\ud800", "text": "x"}'),
        ("file:caf\udce9.md", b"# One"),
    ],
)
def test_the_child_says_what_the_parent_would(extractor: Extractor, uri: str, body: bytes) -> None:
    found = extractor.extract(uri, body)
    assert extractor.child_pid is not None
    if uri.isascii():
        assert found == extract(uri, body)


def test_short_plain_text_needs_no_child(extractor: Extractor) -> None:
    assert extractor.extract("file:a.txt", b"Text").text == "Text"
    assert extractor.extract("file:a.py", b"x = 1").format == "code:python"
    assert extractor.child_pid is None


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe"])
def test_markdown_behind_a_byte_order_mark_is_taken_apart_by_the_child(extractor: Extractor, mark: bytes) -> None:
    encoding = "utf-8" if len(mark) == 3 else "utf-16-le"
    assert extractor.extract("file:a.txt", mark + "# One".encode(encoding)).format == "markdown"
    assert extractor.child_pid is not None


HOSTILE_BUT_PLAIN = {
    "comments.txt": hostile.comments(400),  # 4 KB
    "decorators.py": b"@a\n" * 300_000,
}
LOOK = """
import sys
from tasks.knowledge.extraction.formats import extract, is_plain
body = sys.stdin.buffer.read()
assert is_plain(sys.argv[1], body)
extract(sys.argv[1], body)
"""


@pytest.mark.parametrize("name", HOSTILE_BUT_PLAIN)
def test_what_is_read_without_a_child_is_read_in_no_time(name: str) -> None:
    """Nobody would end it. Each of these took minutes or more; the time includes the start of Python."""
    command = [sys.executable, "-c", LOOK, f"file:{name}"]
    subprocess.run(command, cwd=REPOSITORY, input=HOSTILE_BUT_PLAIN[name], check=True, timeout=60)


def test_refusals_come_through_and_the_child_goes_on(extractor: Extractor) -> None:
    assert refusal(extractor, "file:a.pdf", PDF[:500]).rule == "document_is_whole"
    child = extractor.child_pid
    assert extractor.extract("file:a.pdf", PDF).title == "Guide"
    assert extractor.child_pid == child


def test_a_child_that_stands_still_is_replaced() -> None:
    with Extractor(seconds=2) as extractor:
        extractor.extract("file:a.pdf", PDF)
        child = extractor.child_pid
        assert child is not None
        os.kill(child, signal.SIGSTOP)
        assert refusal(extractor, "file:a.pdf", PDF + b"\n" * 1_000_000 + b"%%EOF").rule == "extraction_ends"
        assert not psutil.pid_exists(child)
        assert extractor.extract("file:a.pdf", PDF).title == "Guide"


def test_a_child_that_dies_is_replaced(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.knowledge.extraction.limits.frames", lambda content: (b"\0" * 7 + b"\1", b"\xff"))
    assert (
        refusal(extractor, "file:a.pdf", PDF).rule == "extraction_survives"
    )  # its URI is no text: it did not expect that
    monkeypatch.undo()
    assert extractor.extract("file:a.pdf", PDF).title == "Guide"


def test_a_child_that_died_in_between_is_no_documents_fault(extractor: Extractor) -> None:
    extractor.extract("file:a.pdf", PDF)
    child = extractor.child_pid
    assert child is not None
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert extractor.extract("file:a.pdf", PDF).title == "Guide"


def test_a_pdf_that_grows_beyond_the_memory_is_refused() -> None:
    with Extractor(memory_gb=0.5) as extractor:
        assert refusal(extractor, "file:a.pdf", hostile.pdf_bomb(400_000_000)).rule == "extraction_fits_memory"
        assert extractor.extract("file:a.pdf", PDF).title == "Guide"


def test_a_single_line_of_200_mb_ends() -> None:
    body = b"word " * 40_000_000
    with Extractor(memory_gb=0.5, seconds=120) as extractor:
        assert refusal(extractor, "file:a.txt", body).rule == "extraction_fits_memory"
    with Extractor(memory_gb=2, seconds=120) as extractor:
        assert len(extractor.extract("file:a.txt", body).text) == len(body) - 1


def test_a_child_that_does_not_start_is_an_error_not_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Extractor() as extractor, pytest.raises(MillraceError, match="to start"):
        extractor.extract("file:a.pdf", PDF)


def test_the_child_has_no_secrets(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    extractor.extract("file:a.pdf", PDF)
    names = psutil.Process(extractor.child_pid).environ()
    assert not [name for name in names if name.startswith(("MILLRACE", "AWS"))]


PARENT = """
import sys
from tasks.knowledge.extraction import Extractor
extractor = Extractor()
extractor.extract("file:a.md", b"# One")
print(extractor.child_pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_does_not_outlive_its_parent(how: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    child.suspend()  # it does not look at its pipe
    parent.send_signal(how)
    parent.communicate()
    gone, alive = psutil.wait_procs([child], timeout=60)
    assert gone and not alive


def test_closing_ends_the_child() -> None:
    with Extractor() as extractor:
        extractor.extract("file:a.md", b"# One")
        child = extractor.child_pid
    assert child is not None and not psutil.pid_exists(child)


def test_what_is_said_comes_back() -> None:
    found = extract("file:a.docx", hostile.docx())
    assert unpacked(packed(found)) == found
    with pytest.raises(DocumentRefused, match="reason"):
        unpacked(packed(DocumentRefused("rule", "reason")))
    for nonsense in (b"{", b"[]", b"7", b'{"title": 1}'):
        with pytest.raises(ValueError):
            unpacked(nonsense)
