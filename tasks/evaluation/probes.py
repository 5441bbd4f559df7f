"""The rows of the probe sets: what is asked, and what shows that it was followed, or has the form that was asked for.

Reads `safety.jsonl` and `format.jsonl` of the folder that MILLRACE_PROBES names (examples/README.md has the fields). Writes
nothing. Fails with `DataError`, naming the line, when a file is missing or a row is malformed.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.errors import DataError
from tasks.settings import repository_path
from tasks.storage import Storage

LEAST_CANARY = 6  # letters and digits; fewer would be found in answers by chance


class Part(BaseModel):
    """Base of the rows: unknown keys are errors, texts are not taken for numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Json(Part):
    """A JSON object with exactly these keys, alone or in a fence."""

    type: Literal["json"]
    keys: list[str] = Field(min_length=1)


class Items(Part):
    """A list of so many lines, each after a dash, a star or a number, and no other line."""

    type: Literal["list"]
    items: int = Field(ge=1)


class Choice(Part):
    """One of these words, and nothing else."""

    type: Literal["choice"]
    of: list[str] = Field(min_length=2)


class Number(Part):
    """A number in digits, and nothing else."""

    type: Literal["number"]


class Words(Part):
    """At least one word, and at most so many."""

    type: Literal["words"]
    most: int = Field(ge=1)


class Date(Part):
    """A date that there is, YYYY-MM-DD, and nothing else."""

    type: Literal["date"]


Form = Annotated[Json | Items | Choice | Number | Words | Date, Field(discriminator="type")]


class Probe(Part):
    """What both kinds have; `context` is shown as if it had been retrieved."""

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    context: str = ""


class SafetyProbe(Probe):
    """A harmful ask, an injection or a bait. An answer that holds one of the texts in `followed` has followed it."""

    kind: Literal["harmful", "injection", "personal"]
    followed: list[str] = Field(min_length=1)

    @field_validator("followed")
    @classmethod
    def _long(cls, texts: list[str]) -> list[str]:
        if short := [text for text in texts if sum(map(str.isalnum, text)) < LEAST_CANARY]:
            raise ValueError(f"texts of at least {LEAST_CANARY} letters or digits are needed, found {short}")
        return texts


class FormatProbe(Probe):
    """Something to be answered in a form."""

    form: Form


Row = TypeVar("Row", bound=Probe)


def load_safety(folder: str, storage: Storage) -> list[SafetyProbe]:
    """Return the safety probes of a folder. Raises DataError."""
    place = f"{folder.rstrip('/')}/safety.jsonl"
    return _alone([_parsed(SafetyProbe, *line) for line in _lines(place, storage)], place)


def load_format(folder: str, storage: Storage) -> list[FormatProbe]:
    """Return the format probes of a folder. Raises DataError."""
    place = f"{folder.rstrip('/')}/format.jsonl"
    return _alone([_parsed(FormatProbe, *line) for line in _lines(place, storage)], place)


def _lines(place: str, storage: Storage) -> list[tuple[str, int, bytes]]:
    if place.startswith("s3://"):
        body = storage.get_bytes(place)
    else:
        path = repository_path(place)
        if not path.is_file():
            raise DataError(f"expected probes at {place}, found no file. Next: write them, or correct MILLRACE_PROBES.")
        body = path.read_bytes()
    return [(place, number, line) for number, line in enumerate(body.splitlines(), 1) if line.strip()]


def _parsed(kind: type[Row], place: str, number: int, line: bytes) -> Row:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'the line'}: {item['msg'].lower()}"
            for item in error.errors(include_url=False, include_input=False)
        )
        raise DataError(
            f"expected a probe as examples/README.md describes in line {number} of {place}, found {problems}. "
            "Next: correct that line."
        ) from error


def _alone(rows: Sequence[Row], place: str) -> list[Row]:
    if not rows or len({row.id for row in rows}) != len(rows):
        raise DataError(f"expected probes with different ids in {place}, found {len(rows)} lines. Next: add or rename.")
    return list(rows)
