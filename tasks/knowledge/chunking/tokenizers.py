"""Which tokenizers split a text where, proven from what they are made of.

`splitting(tokenizer)` reads the tokenizer's normalizer, pre-tokenizer and added tokens, and says at which places a
text may be divided so that the tokens of the parts are together exactly the tokens of the whole, whatever stands
around the places. Words of such a text can be counted once and remembered. Where that is not certain it says so, and
texts are given to the tokenizer whole. Fails with `ModelError` for a tokenizer that cuts or pads what it is given.

WordPiece after BERT's pre-tokenizer (MiniLM, MPNet, BGE, E5, GTE ...): white space always parts two words, and no
normalizer that is accepted here lets a character act across it (lower case, accents, Chinese characters and control
characters are matters of a word). Any of space, tab, line feed and carriage return is white space before and after.
Byte-level BPE with GPT-2's pattern (RoBERTa, GPT-2): a word takes the one space before it with it, so a text may be
divided before white space, after a character that is surely none. Patterns of others (Qwen, Llama) take line ends to
the word before them; SentencePiece may look across spaces; both are counted whole.
"""

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tasks.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BERT_NORMALIZERS = {"BertNormalizer", "NFC", "NFD", "Lowercase", "StripAccents"}
_BYTE_NORMALIZERS = {"NFC", "NFD"}


@dataclass(frozen=True)
class Splitting:
    """How a text divides into parts whose tokens add up: `part` finds them, `edge` the places between them."""

    kind: Literal["words", "bytes"]
    part: re.Pattern[str]
    edge: re.Pattern[str]
    # Words that are all ASCII letters and digits go to the model as they are (or in lower case), which is much faster.
    lower: bool | None = None


_WORDS = re.compile(r"[^ \t\n\r]+[ \t\n\r]*|[ \t\n\r]+")
_WORDS_EDGE = re.compile(r"(?<=[ \t\n\r])(?=[^ \t\n\r])")
_BYTES = re.compile(r"[ \t\n\r]*(?:[^ \t\n\r]+(?:(?<![!-~\w])[ \t\n\r]+)?)+|[ \t\n\r]+")
_BYTES_EDGE = re.compile(r"(?<=[!-~\w])(?=[ \t\n\r])")


def splitting(tokenizer: "Tokenizer") -> Splitting | None:
    """Return how the tokenizer's words add up, or None where it is not certain that they do. Raises ModelError."""
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        raise ModelError(
            "expected a tokenizer that neither cuts nor pads, found "
            f"{'truncation' if tokenizer.truncation is not None else 'padding'}. "
            "Next: load it with tasks.knowledge.embedders.folder.load_tokenizer."
        )
    added = tokenizer.get_added_tokens_decoder().values()
    if any(re.search(r"\s", token.content) or token.rstrip for token in added):
        return None  # an added token is found before words are: one with white space in it crosses our places
    steps, before = _steps(tokenizer.normalizer), _steps(tokenizer.pre_tokenizer)
    kinds = {step["type"] for step in steps}
    if [step["type"] for step in before] == ["BertPreTokenizer"] and kinds <= _BERT_NORMALIZERS:
        return Splitting("words", _WORDS, _WORDS_EDGE, lower=_lower(tokenizer, steps))
    if (
        [step["type"] for step in before] == ["ByteLevel"]
        and before[0].get("use_regex", True)
        and not before[0].get("add_prefix_space", True)
        and kinds <= _BYTE_NORMALIZERS
    ):
        return Splitting("bytes", _BYTES, _BYTES_EDGE)
    return None


def _lower(tokenizer: "Tokenizer", steps: list[dict[str, Any]]) -> bool | None:
    """Return whether ASCII letters are made small before the model sees them; None where words must not go to it."""
    from tokenizers.models import WordPiece

    if not isinstance(tokenizer.model, WordPiece):
        return None
    return any(step["type"] == "Lowercase" or step.get("lowercase") is True for step in steps)


def _steps(part: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer as it describes itself, sequences laid flat."""
    return _flat(json.loads(part.__getstate__())) if part is not None else []


def _flat(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [inner for part in step.get("normalizers") or step.get("pretokenizers") or [] for inner in _flat(part)]
