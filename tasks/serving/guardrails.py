"""What the assistant does with instructions in what it reads, and with personal data in what it keeps and says.

Looks with the screening policy's own rules (expectations/screening.yaml: its allow-lists hold here too, and a rule that is
`allow` there is not looked for here), but for those that need a model: they would take longer than the answer. What it did
stands in the request's row as events, which never hold what was found. Reads the policy; writes nothing. Fails with
`QuestionRefused`, and with `DataError` for a malformed policy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

from tasks.screening import Policy, Rule, load_policy, screen
from tasks.serving.refusals import QuestionRefused
from tasks.serving.request_log import RequestRow
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.knowledge.search import Hit
    from tasks.serving.language_model import Generated

INSTRUCTIONS = ("injected_instructions", "invisible_text")
PERSONAL = (
    "private_key",
    "access_token",
    "email_address",
    "payment_card",
    "iban",
    "national_id",
    "phone_number",
)
_FIRST = ("hidden_characters",)  # one inside a number would hide it from the other rules
MIN_SCORE = "min_score"

Where = Literal["question", "document", "answer"]
Action = Literal["noted", "left_out", "refused", "redacted"]


@dataclass(frozen=True)
class Guardrails:
    """What is done about what is found. `min_score` is the least score of a hit that an answer is made from."""

    injection: Literal["note", "refuse"] = "note"
    redact_log: bool = True
    redact_answers: bool = False
    min_score: float | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Guardrails":
        """Return the guardrails that the settings ask for, their rules loaded. Raises DataError."""
        redacted("nobody@nowhere.invalid +49 30 1234567")  # libraries load when they are used first
        return cls(
            settings.assistant_injection,
            settings.assistant_redact_log == "yes",
            settings.assistant_redact_answers == "yes",
            settings.assistant_min_score,
        )

    def ask(self, row: RequestRow, texts: Iterable[str]) -> None:
        """Look at everything that a client says in a request. Raises QuestionRefused where that is the setting."""
        found = sorted({rule for text in texts for rule in spoken_to(text)})
        refuse = self.injection == "refuse"
        for rule in found:
            _note(row, rule, "question", "refused" if refuse else "noted")
        if found and refuse:
            raise QuestionRefused(
                f"expected a question, found instructions to the model ({', '.join(found)}). Next: ask in other words."
            )

    def usable(self, row: RequestRow, hits: "Sequence[Hit]") -> "Sequence[Hit]":
        """Return the hits that may stand in a prompt; an event tells of each that may not."""
        kept = []
        for hit in hits:
            found = spoken_to(f"{hit.title}\n{hit.text}")
            for rule in found[:1]:  # one event a document: they are counted
                _note(row, rule, "document", "left_out")
            if not found:
                kept.append(hit)
        return kept

    def searched(self, row: RequestRow, hits: "Sequence[Hit]") -> None:
        """Note what a search asked and found: its text goes to no model of ours."""
        for rule in spoken_to(row.question):
            _note(row, rule, "question", "noted")
        for hit in hits:
            for rule in spoken_to(f"{hit.title}\n{hit.text}")[:1]:
                _note(row, rule, "document", "noted")

    def unknown(self, row: RequestRow, hits: "Sequence[Hit]") -> bool:
        """Return whether no hit is good enough for an answer, and mark the row so."""
        if self.min_score is None or any(hit.score >= self.min_score for hit in hits):
            return False
        row.refused = True
        _note(row, MIN_SCORE, "document", "refused")
        return True

    def answered(self, row: RequestRow, generated: "Generated") -> "Generated":
        """Return an answer as it may be told."""
        if not self.redact_answers:
            return generated
        text, found = redacted(generated.text)
        for rule in found:
            _note(row, rule, "answer", "redacted")
        return replace(generated, text=text)

    def keep(self, row: RequestRow) -> None:
        """Make a row what may be kept of it, before it goes to the request log."""
        if not self.redact_log:
            return
        row.client, _ = redacted(row.client)
        row.question, found = redacted(row.question)
        for rule in found:
            _note(row, rule, "question", "redacted")
        if row.answer is not None:
            row.answer, found = redacted(row.answer)
            for rule in found:
                _note(row, rule, "answer", "redacted")

    def stored(self, text: str) -> str:
        """Return a text as it may be kept."""
        return redacted(text)[0] if self.redact_log else text


def spoken_to(text: str) -> list[str]:
    """Return the rules that find instructions to a language model in a text."""
    return [rule for rule in screen(text, _rules(INSTRUCTIONS)).hits if rule in INSTRUCTIONS]


def redacted(text: str) -> tuple[str, list[str]]:
    """Return a text without personal data and credentials, and the rules that found some."""
    screened = screen(text, _rules(_FIRST + PERSONAL))
    found = [rule for rule in screened.hits if rule in PERSONAL]
    return (screened.text, found) if found else (text, [])


@cache
def _rules(names: Sequence[str]) -> Policy:
    """Return the policy with these rules alone."""
    policy = load_policy()
    others = {name: Rule(action="allow") for name in policy.rules if name not in names}
    return policy.model_copy(update={"rules": dict(policy.rules) | others})


def _note(row: RequestRow, rule: str, where: Where, action: Action) -> None:
    event: dict[str, str] = {"rule": rule, "where": where, "action": action}
    if where == "document" or event not in row.guardrails:
        row.guardrails.append(event)
