"""The words of screening: a rule of the policy, what a detector is given, and what it answers.

Reads and writes nothing. A detector finds places of a text; the rule says what happens to them.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

Action = Literal["block", "redact", "allow"]


class Rule(BaseModel):
    """What happens to what a rule finds, and the options of the few rules that have some (`Detector.options`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action
    allow: tuple[re.Pattern[str], ...] = ()
    regions: tuple[str, ...] = ()  # phone_number: countries whose national notation is looked for
    countries: tuple[str, ...] = ()  # national_id: only these; none: all that are known
    languages: tuple[str, ...] = ()  # language: what may pass; none: any
    words: int = Field(default=400, ge=0)  # invisible_text: that many hidden words may be
    threshold: float = Field(default=0.8, gt=0, le=1)  # of a model's score
    labels: tuple[str, ...] = ()  # of a model's answers, those that are hits (any case)


@dataclass(frozen=True)
class Models:
    """The models that a deployment names, and where they are kept; without a name its rule finds nothing."""

    names: str | None = None
    toxicity: str | None = None
    cache_dir: Path = Path(".millrace/cache")
    s3_endpoint_url: str | None = None


@dataclass(frozen=True)
class Subject:
    """What a detector looks at: a text, what its format hid from readers, and that format."""

    text: str
    hidden: str = ""
    format: str = "text"

    @property
    def is_code(self) -> bool:
        """Whether the text is source code, which is no language and full of numbers."""
        return self.format.partition(":")[0] == "code"


class Find(NamedTuple):
    """A place, what stands there (for allow-lists), and what to put instead (None: the rule's mark)."""

    start: int
    end: int
    found: str
    instead: str | None = None


Finder = Callable[[Subject, Rule, Models], Iterable[Find]]


@dataclass(frozen=True)
class Detector:
    """How a rule finds what it looks for. `decided_by` and `packages` say what a change of would find other things."""

    what: str
    find: Finder
    decided_by: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    actions: tuple[Action, ...] = ("block", "redact", "allow")
    options: tuple[str, ...] = ()
    mark: str | None = None  # what stands in the place of a redaction; None: the rule's name
    model: Callable[[Models], str | None] | None = None  # the model it needs, where it needs one


def finds(matches: Iterable[re.Match[str]]) -> Iterator[Find]:
    """Yield the places of matches."""
    for match in matches:
        yield Find(match.start(), match.end(), match[0])


def at_literals(pattern: re.Pattern[str], text: str, literals: Iterable[str]) -> Iterator[re.Match[str]]:
    """Yield the matches of a pattern that begin with one of the literals, literal by literal.

    Finding a literal costs a hundredth of trying the pattern at every character.
    """
    for literal in literals:
        at = text.find(literal)
        while at >= 0:
            match = pattern.match(text, at)
            if match:
                yield match
            at = text.find(literal, at + len(literal))
