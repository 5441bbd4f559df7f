"""Numbers that states give to people, by shape, check digits and, where those say too little, a word near them.

Reads and writes nothing but its arguments; the check digits are python-stdnum's. A kind without `words` has a shape
and check digits that numbers of other kinds hardly ever have. All others count only with one of their words at most
60 characters before or 20 after: every eleventh number of nine digits passes the test of the Dutch BSN.
"""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tasks.screening.rules import Detector, Find, Models, Rule, Subject

_BEFORE, _AFTER = 60, 20


@dataclass(frozen=True)
class Kind:
    """One country's number: its shape, the module of python-stdnum that checks it, the words that stand near it."""

    country: str
    shape: str
    check: str | None
    words: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What decides whether it is found."""
        return (self.country, self.shape, self.check or "", self.words)


KINDS = (
    Kind("US", r"\d{3}[- ]\d\d[- ]\d{4}", "us.ssn", r"ssn|social security"),
    Kind(
        "GB",
        r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]",
        None,
        r"nino|national insurance|ni number",
    ),
    Kind("GB", r"\d{3}[ -]?\d{3}[ -]?\d{4}", "gb.nhs", r"nhs"),
    Kind("DE", r"\d\d ?\d{3} ?\d{3} ?\d{3}", "de.idnr", r"steuer-?id\w*|steuerliche id\w*|idnr|tax id"),
    Kind("FR", r"[12] ?\d\d ?[0-9]\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d", "fr.nir"),
    Kind("ES", r"\d{8}-?[A-Z]", "es.dni", r"dni|nif|documento nacional"),
    Kind("ES", r"[XYZ]-?\d{7}-?[A-Z]", "es.nie", r"nie|nif|extranjero"),
    Kind("IT", r"[A-Z]{6}[\dLMNP-V]{2}[A-EHLMPRST][\dLMNP-V]{2}[A-Z][\dLMNP-V]{3}[A-Z]", "it.codicefiscale"),
    Kind("NL", r"\d{3}[. ]?\d{3}[. ]?\d{3}|\d{4}\.\d\d\.\d{3}", "nl.bsn", r"bsn|burgerservicenummer|sofinummer"),
    Kind("BR", r"\d{3}\.\d{3}\.\d{3}-\d\d", "br.cpf"),
    Kind("BR", r"\d{11}", "br.cpf", r"cpf"),
    Kind("PL", r"\d{11}", "pl.pesel", r"pesel"),
    Kind("SE", r"(?:\d\d)?\d{6}[-+]\d{4}", "se.personnummer", r"personnummer|personal identity"),
    Kind("FI", r"\d{6}[-+A]\d{3}[\dA-FHJ-NPR-Y]", "fi.hetu", r"henkil[öo]tunnus|hetu|personal identity"),
    Kind("CH", r"756\.\d{4}\.\d{4}\.\d\d", "ch.ssn"),
    Kind("BE", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", "be.nn"),
    Kind("CA", r"\d{3}[ -]\d{3}[ -]\d{3}", "ca.sin", r"social insurance|sin number|num[ée]ro d.assurance sociale"),
    Kind("IN", r"\d{4}[ -]\d{4}[ -]\d{4}", "in_.aadhaar", r"aadh?aar|uidai"),
    Kind("CN", r"\d{17}[\dX]", "cn.ric"),
    Kind("KR", r"\d{6}-[1-4]\d{6}", "kr.rrn"),
    Kind("MX", r"[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z\d]\d", "mx.curp"),
    Kind("ZA", r"\d{6} ?\d{4} ?\d{3}", "za.idnr", r"(?:sa|id|identity) (?:id|number|no)"),
)
# Every shape has a digit and six more digits or capitals behind it: where that is not, nothing else is tried.
_CANDIDATE = re.compile(r"\d(?<![\d.].)(?:[ .+-]?[0-9A-Z]){6,}+")
_LEAD = 10  # characters a shape may have before its first digit


_BORDERS = r"(?<![\w.@/-])(?:{})(?![\w@]|[-./]\w)"
_ANY = re.compile(_BORDERS.format("|".join(kind.shape for kind in KINDS)))


@cache
def _shape(kind: Kind) -> re.Pattern[str]:
    return re.compile(_BORDERS.format(kind.shape))


@cache
def _words(kind: Kind) -> re.Pattern[str]:
    return re.compile(rf"(?i)(?<!\w)(?:{kind.words})(?!\w)")


def _national_ids(subject: Subject, rule: Rule, _models: Models) -> Iterator[Find]:
    text, kinds = subject.text, [kind for kind in KINDS if not rule.countries or kind.country in rule.countries]
    for candidate in _CANDIDATE.finditer(text):  # one may hold several numbers
        start, end = max(0, candidate.start() - _LEAD), min(len(text), candidate.end() + 1)
        if _ANY.search(text, start, end):
            for kind in kinds:
                yield from _of_kind(kind, text, start, end)


def _of_kind(kind: Kind, text: str, start: int, end: int) -> Iterator[Find]:
    """Yield the numbers of one kind in a stretch; after one that is none, the next may begin within it."""
    match = _shape(kind).search(text, start, end)
    while match:
        found = _is_one(kind, match)
        if found:
            yield Find(match.start(), match.end(), match[0])
        match = _shape(kind).search(text, match.end() if found else match.start() + 1, end)


def _is_one(kind: Kind, match: re.Match[str]) -> bool:
    """Return whether the check digits are right, and a word of the kind stands near where it needs one."""
    text = match.string
    if len(set(re.sub(r"\D", "", match[0]))) == 1:
        return False
    # The candidate may end where the text of the search did: the letter behind it must be looked at in the whole text.
    if _shape(kind).match(text, match.start()) is None:
        return False
    if kind.words:
        around = text[max(0, match.start() - _BEFORE) : match.start()] + " " + text[match.end() : match.end() + _AFTER]
        if not _words(kind).search(around):
            return False
    return kind.check is None or bool(importlib.import_module(f"stdnum.{kind.check}").is_valid(match[0]))


NATIONAL_ID = Detector(
    "a national id",
    _national_ids,
    (_CANDIDATE.pattern, *("|".join(kind.key) for kind in KINDS)),
    packages=("python-stdnum",),
    options=("countries",),
)
