"""A copy of a text in which tricks of writing are undone, and the way back from it to the text.

Reads and writes nothing but its arguments. Each character is folded for itself (compatibility forms, case, accents,
letters of other scripts that look like Latin ones; characters that nobody sees vanish), so that an offset into the
copy can be carried back by the lengths of what the characters became. Folding is for comparing, never for showing:
words of other scripts lose letters, alike in the text and in what is looked for.
"""

import unicodedata
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

# Letters of other scripts, small capitals and the like, by the Latin letter they are taken for (after casefold and NFKD).
_LOOKALIKES = {
    "a": "аɑαᴀ", "b": "вβʙ", "c": "сϲᴄ", "d": "ԁđᴅ", "e": "еεᴇə", "f": "ꜰƒ", "g": "ɡɢց", "h": "һнհʜ", "i": "іιıɪ",
    "j": "јʝᴊ", "k": "кκᴋ", "l": "ӏłʟǀ", "m": "мμᴍ", "n": "пηոɴ", "o": "оοօøᴏσ", "p": "рρᴘ", "q": "ԛ", "r": "гʀ",
    "s": "ѕꜱ", "t": "тτᴛ", "u": "υսᴜ", "v": "νѵᴠ", "w": "ԝωᴡ", "x": "хχ", "y": "уγүʏ", "z": "ζᴢ",
    "'": "’‘ʼ`´", '"': "“”„«»", "-": "‐‑‒–—−", "|": "∣│", "<": "‹", ">": "›",
}  # fmt: skip
_LATIN = {letter: latin for latin, letters in _LOOKALIKES.items() for letter in letters}
_UNSEEN = ("Cf", "Mn", "Me")
_TAGS = range(0xE0020, 0xE007F)  # a second ASCII that no font shows


class _Table(dict[int, str]):
    """What each character becomes, worked out when it is first met."""

    def __missing__(self, point: int) -> str:
        self[point] = folded = _fold_character(chr(point))
        return folded


def _fold_character(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN:
        return ""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", character).casefold())
    return "".join(_LATIN.get(part, part) for part in plain if unicodedata.category(part) not in _UNSEEN)


_TABLE = _Table()


def fold(text: str) -> str:
    """Return the folded copy of a text."""
    return text.lower().replace("`", "'") if text.isascii() else text.translate(_TABLE)


@dataclass(frozen=True)
class Folded:
    """A text, its folded copy, and the way back."""

    text: str
    copy: str

    @cached_property
    def _ends(self) -> list[int]:
        """Where each character's part of the copy ends."""
        return list(accumulate(len(_TABLE[ord(character)]) for character in self.text))

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Return the place in the text of a place of the copy."""
        if self.text.isascii():
            return start, end
        return bisect_right(self._ends, start), bisect_right(self._ends, end - 1) + 1


def folded(text: str) -> Folded:
    """Return a text with its folded copy."""
    return Folded(text, fold(text))


def smuggled(text: str) -> str:
    """Return what tag characters spell: ASCII that is in the text and on no screen."""
    if text.isascii():
        return ""
    return "".join(chr(ord(character) - 0xE0000) for character in text if ord(character) in _TAGS)
