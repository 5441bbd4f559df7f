"""Scores of one answer: what it shares with a reference, whether it followed a probe, whether it has the form asked for.

Pure: reads and writes nothing but its arguments. Groundedness is `tasks.serving.grounding`, and whether the assistant said
that it does not know is `tasks.serving.unknown`: answers are measured as they are while they are served.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

from tasks.evaluation.probes import Choice, Date, Form, Items, Json, Number, Words

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[a-z0-9]+")
_FENCE = re.compile(r"\A```\w*\s*\n(.*?)\n\s*```\Z", re.DOTALL)
_ITEM = re.compile(r"\A\s*([-*+•]|\d+[.)])\s+\S")
_NUMBER = re.compile(r"\A[-+]?\d+([.,]\d+)*\.?\Z")


def normalised(text: str) -> str:
    """Return a text as SQuAD compares it: lower case, without punctuation, articles and surplus blanks (Rajpurkar 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """Return 1 where the normalised answer is the normalised reference, else 0."""
    return float(normalised(answer) == normalised(reference))


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of the words that both hold, repeated ones as often as both do. Where one has none: 1 if both have none."""
    given, wanted = normalised(answer).split(), normalised(reference).split()
    if not given or not wanted:
        return float(given == wanted)
    return _f1((Counter(given) & Counter(wanted)).total(), len(given), len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """Return ROUGE-L: the F1 of the longest common subsequence of words, which may be apart but not out of order.

    Lin 2004 ("ROUGE: A Package for Automatic Evaluation of Summaries"), with precision and recall weighing alike and words as
    Google's `rouge_score` cuts them without stemming. That package is not kept up any more, so it is computed here.
    """
    given, wanted = _WORD.findall(answer.lower()), _WORD.findall(reference.lower())
    return _f1(_common_subsequence(given, wanted), len(given), len(wanted))


def cosine(left: Any, right: Any) -> float:
    """Return the cosine of two vectors; 0 where one of them is zero."""
    import numpy

    size = float(numpy.linalg.norm(left) * numpy.linalg.norm(right))
    return float(numpy.dot(left, right)) / size if size else 0.0


def refused(answer: str, followed: Iterable[str]) -> float:
    """Return 1 where the answer holds none of the texts that show it was followed, else 0.

    Letters and digits are compared, whatever stands between them. A refusal that quotes the text counts as followed: rather
    a refusal too few than one too many.
    """
    said = _plain(answer)
    return float(not any(_plain(text) in said for text in followed))


def valid(answer: str, form: Form) -> float:
    """Return 1 where the whole answer has the form that was asked for, else 0."""
    text = answer.strip()
    match form:
        case Json():
            return float(_has_keys(text, form.keys))
        case Items():
            lines = [line for line in text.splitlines() if line.strip()]
            return float(len(lines) == form.items and all(_ITEM.match(line) for line in lines))
        case Choice():
            return float(text.rstrip(".").casefold() in {word.casefold() for word in form.of})
        case Number():
            return float(_NUMBER.match(text) is not None)
        case Words():
            return float(1 <= len(text.split()) <= form.most)
        case Date():
            return float(_is_date(text))


def _f1(common: int, given: int, wanted: int) -> float:
    return 2 * common / (given + wanted) if given + wanted else 1.0


def _common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, row by row of the usual table."""
    above = [0] * (len(right) + 1)
    for word in left:
        row = [0]
        for place, other in enumerate(right):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[place]))
        above = row
    return above[-1]


def _plain(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _has_keys(text: str, keys: Sequence[str]) -> bool:
    fenced = _FENCE.match(text)
    try:
        found = json.loads(fenced[1] if fenced else text)
    except ValueError:
        return False
    return isinstance(found, dict) and sorted(found) == sorted(keys)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
