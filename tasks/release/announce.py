"""Tell people about a release: `announcement.md` in the run folder, and a note to each channel that is set.

Reads the manifests of propose and promote. The channels (`tasks.release.channels`) are a webhook, Slack and mail, any
number of them; one that fails does not stop the others, and a retry tells only those that were not told. Fails with
`ServiceUnavailable` when one does not answer, and with `SettingsError` when one refuses the note; the release is live
either way.
"""

from typing import Any

from tasks.contracts import Manifest
from tasks.release.channels import News, send_all
from tasks.stage import Stage, StageContext, StageOptions, StageResult

_NAMES = (
    "release", "kind", "model_name", "model_version", "index_version", "approved_by", "reason", "restores", "evidence_uri",
)  # fmt: skip


class Options(StageOptions):
    """No options."""


def run(context: StageContext, options: Options) -> StageResult:
    """Write the announcement of a promotion, and send it."""
    promoted, proposed = context.inputs["promote"], context.inputs["propose"]
    facts = promoted.facts
    title, text = f"Release {facts['release']} is live", announcement(promoted, proposed)
    return tell(context, News(title, text, note(promoted), promoted.run))


def tell(context: StageContext, news: News) -> StageResult:
    """Write the announcement, and send it to every channel. Raises ServiceUnavailable, SettingsError."""
    written = context.storage.put_bytes(
        f"{context.folder}/announcement.md", news.text.encode(), content_type="text/markdown"
    )
    news.note["text"] = news.text
    told = send_all(context, news)
    return StageResult(
        outputs={"announcement": written},
        counts={"notes": len(told["sent"]) + len(told["sent_before"])},
        facts={"release": news.note["release"], **told},
    )


def announcement(promoted: Manifest, proposed: Manifest) -> str:
    """Return the announcement: what is live now, who approved it and why, and the proposal it came from."""
    facts = promoted.facts
    lines = [
        f"# Release {facts['release']}",
        "",
        *is_live(facts),
        f"Approved by {facts['approved_by']}: {facts['reason']}",
        *not_mirrored(facts),
    ]
    return "\n".join([*lines, "", "## What changed", "", str(proposed.facts["body"]).rstrip(), ""])


def is_live(facts: dict[str, Any]) -> list[str]:
    """Return the line that says what answers now."""
    return [
        f"{facts['model_name']} version {facts['model_version']} with index version {facts['index_version']} is live."
    ]


def not_mirrored(facts: dict[str, Any]) -> list[str]:
    """Return the lines that say that MLflow does not show the release yet; none where it does."""
    problem = facts.get("mirror_problem")
    return ["", f"MLflow does not show it yet; the next release stage tries again. {problem}"] if problem else []


def note(made: Manifest) -> dict[str, Any]:
    """Return what programs get: the facts of the release by name. `text` is added for chat services."""
    return {"event": "millrace.release", "text": ""} | {name: made.facts[name] for name in _NAMES}


STAGE = Stage("announce", Options, run, needs=("propose", "promote"))
