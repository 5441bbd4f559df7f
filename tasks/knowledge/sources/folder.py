"""The files below a folder. A URI is the path below it: `file:RELATIVE/PATH`.

Reads the folder's entries and, one at a time, its files. Writes nothing. A link to a file within the folder is read; one
that leads out, or in a circle, is listed and refused when it is read, so that somebody sees it. Links to other folders
within are counted, not followed: their files are listed where they are. Fails with `CorpusError` when the folder or one
below it cannot be read (else its documents would seem deleted), and refuses single files with `DocumentRefused`.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter, itemgetter
from pathlib import Path

from tasks.errors import CorpusError
from tasks.knowledge.extraction.model import DocumentRefused
from tasks.knowledge.sources.base import FOLDER_LINK, HIDDEN, Ignored, Item, is_hidden, moved, refuse_huge, unreadable


class Folder:
    """A folder of documents."""

    prefix = "file:"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ignored = Ignored()

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many files the last listing passed over, by ending."""
        return self._ignored.counts

    def list(self) -> Iterator[Item]:
        """Yield every file that may be a document, a folder at a time. Raises CorpusError."""
        if not self._folder.is_dir():
            raise CorpusError(f"expected a corpus folder at {self._folder}, found none. Next: correct MILLRACE_CORPUS.")
        self._ignored = Ignored()
        yield from self._walk(self._folder.resolve(), self._folder.resolve(), "")

    def read(self, item: Item, limit: int) -> bytes:
        """Return one file. Raises DocumentRefused."""
        path = self._inside(item)
        refuse_huge(item, limit)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise unreadable(item.uri, "no regular file")
            # O_NONBLOCK: it could have become a pipe that nobody writes to; O_NOFOLLOW: or a link.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                before = stamp_of(os.fstat(descriptor))
                if before != item.stamp:
                    raise moved(item, before)
                body = file.read(item.bytes + 1)
                after = stamp_of(os.fstat(descriptor))
        except OSError as error:
            raise unreadable(item.uri, error.strerror or str(error)) from error
        if after != item.stamp or len(body) != item.bytes:
            raise moved(item, f"{after} ({len(body):,} bytes or more)")
        return body

    def _inside(self, item: Item) -> Path:
        """Return where a document really is. Raises DocumentRefused when that is not in the folder."""
        root = self._folder.resolve()
        try:
            path = (root / item.uri.removeprefix(self.prefix)).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, RuntimeError) or getattr(error, "errno", 0) == errno.ELOOP:
                raise _loop(item.uri) from error
            raise unreadable(item.uri, getattr(error, "strerror", None) or str(error)) from error
        if not path.is_relative_to(root):
            raise DocumentRefused(
                "document_stays_inside",
                f"expected {item.uri} inside the corpus folder, found that it leads out of it. Next: remove the link.",
            )
        if path.is_dir():
            raise _loop(item.uri)
        return path

    def _walk(self, root: Path, folder: Path, above: str) -> Iterator[Item]:
        """Yield the items below a folder, in the byte order of their paths."""
        try:
            with os.scandir(folder) as entries:
                found = _named(entries)
        except OSError as error:
            raise _unreadable_place(str(folder), error) from error
        for name, entry in found:
            if name.endswith("/"):
                if is_hidden(name[:-1]):
                    self._ignored.counts[HIDDEN] += 1
                else:
                    yield from self._walk(root, folder / entry.name, above + name)
            elif not self._ignored.passes_over(name):
                item = self._item(root, entry, above + name)
                if item is not None:
                    yield item

    def _item(self, root: Path, entry: "os.DirEntry[str]", path: str) -> Item | None:
        """Return an entry as an item; None for one that is gone, and for a link to a folder that is listed elsewhere."""
        try:
            own = entry.stat(follow_symlinks=False)
            if not stat.S_ISLNK(own.st_mode):
                return Item(self.prefix + path, stamp_of(own), own.st_size if stat.S_ISREG(own.st_mode) else 0)
            target = Path(entry.path).resolve(strict=True)
            if target.is_relative_to(root):
                found = target.stat()
                if stat.S_ISREG(found.st_mode):
                    return Item(self.prefix + path, stamp_of(found), found.st_size)
                if stat.S_ISDIR(found.st_mode) and not Path(entry.path).parent.is_relative_to(target):
                    self._ignored.counts[FOLDER_LINK] += 1
                    return None
        except FileNotFoundError:
            if not os.path.lexists(entry.path):
                return None  # it went while the folder was listed
        except (OSError, RuntimeError):
            pass  # a link in a circle, or to where we may not look: reading says which
        return Item(self.prefix + path, stamp_of(own), 0)


def stamp_of(found: os.stat_result) -> str:
    """Return what changes whenever a file may have: size, moments of the last write and change, and which file it is."""
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_ino}"


def shown(name: str) -> str:
    """Return a file's name as text; bytes that are not UTF-8 are shown as \\xNN (such a file is refused when read)."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _named(entries: "Iterable[os.DirEntry[str]]") -> "list[tuple[str, os.DirEntry[str]]]":
    """Return the entries of a folder, each by a name of its own, a folder's with a slash, in the byte order of their paths."""
    found = sorted(entries, key=attrgetter("name"))
    taken = {entry.name for entry in found}
    named = []
    for entry in found:
        name = shown(entry.name)
        while name != entry.name and name in taken:  # b"\xff" beside a file that is named \xff
            name = name.replace("\\", "\\\\")
        taken.add(name)
        named.append((name + "/" if _is_folder(entry) else name, entry))
    # A folder sorts as its files' paths do: with the slash. Code points sort as UTF-8 does.
    return sorted(named, key=itemgetter(0))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir(follow_symlinks=False)


def _loop(uri: str) -> DocumentRefused:
    return DocumentRefused(
        "document_is_no_loop", f"expected {uri} to lead to a file, found a link in a circle. Next: remove the link."
    )


def _unreadable_place(place: str, error: OSError) -> CorpusError:
    return CorpusError(
        f"expected to read {place}, found {error.strerror or error}. Next: check that it exists and who may read it."
    )
