"""Text of other people, made harmless for a terminal.

A reason, a name or a URI may hold anything: escape sequences that rewrite the screen, line breaks that fake a row, marks
that turn the direction of writing. All of them are shown as what they are (`\\x1b`). Reads and writes nothing.
"""

import textwrap
import unicodedata

WIDTH = 100
_BREAKS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories that are not shown, or not as one place


def plain(text: object) -> str:
    """Return a text as one line without a character that a terminal obeys."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _BREAKS else character
        for character in str(text)
    )


def cut(text: object, columns: int) -> str:
    """Return a harmless text of at most so many columns, with a mark where it was cut."""
    shown = plain(text)
    if _columns(shown) <= columns:
        return shown
    while shown and _columns(shown) > columns - 1:
        shown = shown[:-1]
    return shown + "…"


def pad(text: object, columns: int) -> str:
    """Return a harmless text of exactly so many columns."""
    shown = cut(text, columns)
    return shown + " " * (columns - _columns(shown))


def paragraph(label: str, text: object, indent: str, most: int | None = None) -> list[str]:
    """Return `LABEL TEXT` wrapped to the width of the page, and where `most` is given, cut after so many lines."""
    words = plain(text)
    # Wide characters take two columns; textwrap counts characters.
    width = WIDTH // 2 if _columns(words) > len(words) else WIDTH
    # Where all of it is shown, a URI stays in one piece, so that it can be copied.
    wrapper = textwrap.TextWrapper(
        width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=most is not None,
        break_on_hyphens=False,
    )  # fmt: skip
    lines = wrapper.wrap(f"{label}{words}") or [indent]
    if most is not None and len(lines) > most:
        lines = [*lines[: most - 1], cut(lines[most - 1], width - 2) + " …"]
    return lines


def _columns(text: str) -> int:
    """Return the columns a terminal gives a text: wide characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
