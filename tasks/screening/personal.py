"""Personal data with a shape: e-mail addresses, payment cards, IBANs, phone numbers.

Reads and writes nothing but its arguments. Shapes are only candidates: cards and IBANs must have the right check
digits, phone numbers must be possible ones in their numbering plan (libraries python-stdnum and phonenumbers).
National ids are in national_ids.py.
"""

import re
from collections.abc import Callable, Iterator
from string import ascii_uppercase

from tasks.screening.rules import Detector, Find, Models, Rule, Subject, at_literals

# Letters of scripts that part words by spaces: of the others, those before and after an address are no part of it.
_LETTER = r"A-Za-z\u00c0-\u0dff\u1e00-\u1fff"
_WORD = rf"0-9_{_LETTER}"
_USER = re.compile(rf"(?<![{_WORD}])[{_WORD}](?:[{_WORD}.+%-]*[{_WORD}+%-])?\Z")
_USER_CHARACTERS = 64
_DOMAIN = re.compile(
    rf"@(?:[{_WORD}-]{{1,63}}\.){{1,8}}(?:xn--[0-9a-z-]{{2,59}}|[{_LETTER}]{{2,24}})(?![0-9{_LETTER}])"
)
_CARD = re.compile(r"[2-6](?<![\w.].)\d{3}[ \u00a0-]?(?:\d[ \u00a0-]?){8,14}\d(?![\w]|\.\d)")
_LEAST_CARD = 12
_CARD_NUMBER = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|6(?:011|5\d\d|4[4-9]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
_IBAN = re.compile(r"[A-Z](?<![\w-].)[A-Z]\d\d(?:[ \u00a0-]?[A-Z0-9]){11,30}")
_LEAST_IBAN = 15
_AS_DIGITS = {ord(letter): str(value) for value, letter in enumerate(ascii_uppercase, start=10)}

# Shapes begin with the class of their first character, and look behind it after that: so a text is scanned fast.
# Candidates only. A national number must be written as one: groups of digits with something between them; a run of ten
# digits is a time, a size or an id far more often.
_INTERNATIONAL = re.compile(r"(?<![\w+=])\+\(?[1-9](?:[ \u00a0()./-]{0,3}\d){7,16}")
_NATIONAL = re.compile(
    r"[(\d](?<![\w.+:/=#$-].)\d{1,5}\)?(?:[ \u00a0-]{1,2}|[./])?\(?\d{2,5}(?:[ \u00a0./-]\d{2,5}){1,4}(?![\w:]|[./-]\d)"
)
_PHONE_WORD = re.compile(
    r"(?i)\b(?:tel|phone|telephone|mobile|cell|fax|call|dial|whatsapp|sms|telefon|telefono|t[ée]l[ée]phone|handy|hotline)"
)
_DECIMAL = re.compile(r"\+\d+\.\d+")
_PHONE_WORD_WITHIN = 40
_NATIONAL_DIGITS = range(9, 14)  # fewer are dates and spans of years


def is_card(text: str) -> bool:
    """Return whether a text is a payment card's number: a known issuer, and the right check digit."""
    digits = re.sub(r"\D", "", text)
    if not _CARD_NUMBER.fullmatch(digits) or len(set(digits)) == 1:
        return False
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def _emails(subject: Subject, _rule: Rule, _models: Models) -> Iterator[Find]:
    text, done = subject.text, 0
    for domain in at_literals(_DOMAIN, text, "@"):
        user = _USER.search(text, max(done, domain.start() - _USER_CHARACTERS), domain.start())
        if user:
            done = domain.end()
            yield Find(user.start(), done, text[user.start() : done])


def _cards(subject: Subject, _rule: Rule, _models: Models) -> Iterator[Find]:
    return _numbers(_CARD, subject.text, _card_end)


def _ibans(subject: Subject, _rule: Rule, _models: Models) -> Iterator[Find]:
    return _numbers(_IBAN, subject.text, _iban_end)


def _numbers(pattern: re.Pattern[str], text: str, end_of: Callable[[str, re.Match[str]], int | None]) -> Iterator[Find]:
    """Yield the numbers that candidates begin with; after one that is none, the next may begin within it."""
    match = pattern.search(text)
    while match:
        end = end_of(text, match)
        if end:
            yield Find(match.start(), end, text[match.start() : end])
        match = pattern.search(text, end or match.start() + 1)


def _ends(text: str, match: re.Match[str], least: int) -> Iterator[tuple[int, str]]:
    """Yield where a number may end that a candidate begins with, and the number, the longest first.

    A candidate may hold what stands behind the number too: the next one, a date, a word.
    """
    places = [place for place in range(match.start(), match.end()) if text[place].isalnum()]
    number = "".join(text[place] for place in places)
    for length in range(len(places), least - 1, -1):
        end = places[length - 1] + 1
        if end == len(text) or not text[end].isalnum():
            yield end, number[:length]


def _card_end(text: str, match: re.Match[str]) -> int | None:
    return next((end for end, number in _ends(text, match, _LEAST_CARD) if is_card(number)), None)


def _iban_end(text: str, match: re.Match[str]) -> int | None:
    from stdnum import iban

    ends = (end for end, number in _ends(text, match, _LEAST_IBAN) if _may_be_iban(number) and iban.is_valid(number))
    return next(ends, None)


def _may_be_iban(number: str) -> bool:
    """Return whether the check digits are right: quicker than the length and shape of its country."""
    return int((number[4:] + number[:4]).translate(_AS_DIGITS)) % 97 == 1


def _phone_numbers(subject: Subject, rule: Rule, _models: Models) -> Iterator[Find]:
    text = subject.text
    for match in at_literals(_INTERNATIONAL, text, "+"):
        if not _DECIMAL.fullmatch(match[0]) and (end := _phone_end(match[0], None)):
            yield Find(match.start(), match.start() + end, match[0][:end])
    if subject.is_code or not rule.regions:
        return
    for match in _NATIONAL.finditer(text):
        if _is_national_number(match, rule):
            yield Find(match.start(), match.end(), match[0])


def _phone_end(candidate: str, region: str | None) -> int | None:
    """Return where the phone number ends that a candidate begins with, None where it is none."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    found = next(iter(PhoneNumberMatcher(candidate, region, leniency=Leniency.VALID, max_tries=2)), None)
    return found.end if found and found.start == 0 else None


def _is_national_number(match: re.Match[str], rule: Rule) -> bool:
    """Return whether a candidate is a number in one of the regions: grouped as there, or with a word that says so."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    if sum(map(str.isdigit, match[0])) not in _NATIONAL_DIGITS or ("." in match[0] and "-" in match[0]):
        return False  # 252.227-7013 is a clause of a regulation
    around = match.string[max(0, match.start() - _PHONE_WORD_WITHIN) : match.start()]
    leniency = Leniency.VALID if _PHONE_WORD.search(around) else Leniency.STRICT_GROUPING
    return any(
        found.end - found.start == len(match[0])
        for region in rule.regions
        if _is_possible(match[0], region)
        for found in PhoneNumberMatcher(match[0], region, leniency=leniency, max_tries=2)
    )


def _is_possible(text: str, region: str) -> bool:
    """Return whether a number is one of a region, however it is written: quicker than the matcher, which says no more often."""
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, region))
    except phonenumbers.NumberParseException:
        return False


EMAIL_ADDRESS = Detector("an e-mail address", _emails, (_USER.pattern, _DOMAIN.pattern))
PAYMENT_CARD = Detector("a payment card number", _cards, (_CARD.pattern, _CARD_NUMBER.pattern))
IBAN = Detector("a bank account number", _ibans, (_IBAN.pattern,), packages=("python-stdnum",))
PHONE_NUMBER = Detector(
    "a phone number",
    _phone_numbers,
    (_INTERNATIONAL.pattern, _NATIONAL.pattern, _PHONE_WORD.pattern),
    packages=("phonenumbers",),
    options=("regions",),
)
