"""Whether a release needs a person, who that may be, and whether the answer that was given counts.

Reads the settings, `corpora.yaml` where MILLRACE_AUTO_PROMOTE names corpora, and the manifest of `propose`. Writes
nothing. `propose` puts these rules into its facts, by which Airflow asks; `promote` believes none of it, works out again
what changes (`tasks.release.change`), and calls `refusal`. Fails with `ApprovalError` (`ApprovalExpired`,
`ApprovalReused`) where an answer does not count, and with `SettingsError` where a setting names nobody or no corpus.
"""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from pydantic import Field

from tasks.contracts import Manifest
from tasks.errors import ApprovalError, ApprovalExpired, ApprovalReused, SettingsError, nearest
from tasks.knowledge.corpora import DEFAULT, load_corpora
from tasks.release.change import Change
from tasks.settings import Settings
from tasks.stage import StageOptions

POLICY = "policy"  # in whose name Airflow answers where no person is needed
_SKEW = timedelta(minutes=5)
# Characters: both stand in manifests' references, which have a limit, and in the ledger for ever.
REASON, NAME = 2_000, 200


class Answer(StageOptions):
    """Who approved, and why. Airflow adds when, and the digest of what it showed; at a shell both are left out."""

    approved_by: str = Field(default="", max_length=NAME)
    reason: str = Field(default="", max_length=REASON)
    answered_at: str = ""
    proposal_sha256: str = ""


def approvers(settings: Settings) -> list[dict[str, str]]:
    """Return who may approve, in the form of Airflow's `assigned_users`; empty: whoever may answer. Raises SettingsError."""
    if settings.approvers is None:
        return []
    people = []
    for entry in _entries(settings.approvers, "MILLRACE_APPROVERS", "Airflow users"):
        identity, equals, name = (part.strip() for part in entry.partition("="))
        people.append({"id": identity, "name": name if equals else identity})
        if not all(people[-1].values()):
            raise SettingsError(f"expected NAME or ID=NAME in MILLRACE_APPROVERS, found {entry!r}. Next: correct it.")
    return people


def auto_promoted(settings: Settings) -> frozenset[str]:
    """Return the corpora whose models need no person. Raises SettingsError for one that there is not."""
    if settings.auto_promote is None:
        return frozenset()
    known = {DEFAULT, *load_corpora(settings.corpora)}
    named = frozenset(_entries(settings.auto_promote, "MILLRACE_AUTO_PROMOTE", "corpora"))
    for name in sorted(named - known):
        raise SettingsError(
            f"expected corpora ({', '.join(sorted(known))}) in MILLRACE_AUTO_PROMOTE, found {name!r}."
            f"{nearest(name, known)} Next: correct it."
        )
    return named


def needs_person(settings: Settings, change: Change) -> bool:
    """Return whether a person must approve: each release by the setting, a prompt (no verdict is about it), whatever there
    is a doubt about, and a model unless its corpus is named.
    """
    named = auto_promoted(settings)  # also where it decides nothing: a wrong name is told at once
    if settings.approval == "always" or change.prompt_changed or change.doubts:
        return True
    return change.model and change.corpus not in named


def policy_words(settings: Settings, corpus: str) -> str:
    """Return which setting lets a release go without a person."""
    return "MILLRACE_AUTO_PROMOTE" if corpus in auto_promoted(settings) else "MILLRACE_APPROVAL"


def terms(settings: Settings) -> str:
    """Return in one line who may answer, and until when."""
    people = ", ".join(person["name"] for person in approvers(settings)) or "whoever may answer in Airflow"
    return f"May approve: {people}. No answer within {settings.approval_hours:g} hours is a no. A reason is required."


def shown(manifest: Manifest) -> str:
    """Return what names a proposal in an answer, and a candidate in a proposal: the digest of its manifest."""
    return hashlib.sha256(manifest.to_bytes()).hexdigest()


def refusal(
    settings: Settings, proposal: Manifest, answer: Answer, change: Change, now: datetime | None = None
) -> str | None:
    """Return why this proposal waits for a person still, or None where it is approved. Raises ApprovalError.

    `change` is what the parts say, not the proposal: one of another hand cannot skip the person.
    """
    by = answer.approved_by.strip()
    require_origin(settings, proposal, answer, now)
    needed = bool(proposal.facts.get("needs_approval", True)) or needs_person(settings, change)
    if not needed:
        return None
    if by in {"", POLICY}:
        return f"expected a person's approval of {proposal.facts['subject']!r}, found none: approve it in Airflow, or give --approved-by"
    allowed = [person["name"] for person in approvers(settings)]
    if allowed and by not in allowed:
        raise ApprovalError(
            f"expected the approval of {', '.join(allowed)} (MILLRACE_APPROVERS), found that of {by}. "
            "Next: trigger promote_release again, and let one of them answer."
        )
    if not answer.reason.strip():
        raise ApprovalError(
            "expected a reason with the approval, found none. Next: clear approve, it asks again; at a shell give --reason."
        )
    return None


def require_origin(settings: Settings, proposal: Manifest, answer: Answer, now: datetime | None = None) -> None:
    """Prove that the answer was given to this proposal, in time. Raises ApprovalError.

    An answer from Airflow carries when it was given and to what; one half of that is as bad as a wrong one.
    """
    now = now or datetime.now(UTC)
    if not answer.answered_at and not answer.proposal_sha256:
        # Given now, at a shell, by somebody who may write to the ledger anyway: to what was proposed lately.
        if now - proposal.ended_at > timedelta(hours=settings.approval_hours):
            raise ApprovalExpired(
                f"expected a proposal of the last {settings.approval_hours:g} hours, found one of {proposal.ended_at}. "
                "Next: trigger promote_release again."
            )
        return
    try:
        answered = datetime.fromisoformat(answer.answered_at)
        age = now - answered
    except (ValueError, TypeError):
        raise ApprovalError(
            f"expected the moment of the approval, with its time zone, found {answer.answered_at!r}. Next: clear approve."
        ) from None
    if answer.proposal_sha256 != shown(proposal):
        raise ApprovalReused(
            f"expected an approval of this proposal ({shown(proposal)}), found one of {answer.proposal_sha256 or 'none'}: "
            "it was proposed again after the answer. Next: clear approve; it asks again."
        )
    if age < -_SKEW:
        raise ApprovalError(f"expected an approval of the past, found one of {answered}. Next: compare the clocks.")
    if age > timedelta(hours=settings.approval_hours):
        raise ApprovalExpired(
            f"expected an approval of the last {settings.approval_hours:g} hours, found one of {answered}. "
            "Next: trigger promote_release again."
        )


def _entries(text: str, variable: str, what: str) -> Iterable[str]:
    found = [entry.strip() for entry in text.split(",")]
    if not all(found):
        raise SettingsError(f"expected {what} in {variable}, found {text!r}. Next: correct or unset it.")
    return found
