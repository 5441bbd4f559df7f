"""Tell people about a release: `announcement.md` in the run folder, and a JSON note to a webhook.

Reads the manifests of propose and promote. The note goes to `MILLRACE_ANNOUNCE_WEBHOOK` where that is
set; it carries `Idempotency-Key: millrace-release-N`, because a retry may send it twice. The URL is a
secret and is never logged. Fails with `ServiceUnavailable` when the webhook does not answer, and with
`SettingsError` when it refuses the note; the release is live either way.
"""

import json
import urllib.error
import urllib.request
from typing import Any

from tasks.contracts import Manifest
from tasks.errors import ServiceUnavailable, SettingsError
from tasks.stage import Stage, StageContext, StageOptions, StageResult

_SECONDS = 10


class Options(StageOptions):
    """No options."""


def run(context: StageContext, options: Options) -> StageResult:
    """Write the announcement, and post it to the webhook where one is set."""
    promoted, proposed = context.inputs["promote"], context.inputs["propose"]
    text = announcement(promoted, proposed)
    written = context.storage.put_bytes(
        f"{context.folder}/announcement.md", text.encode(), content_type="text/markdown"
    )
    webhook = context.settings.announce_webhook
    if webhook is not None:
        post(webhook.get_secret_value(), note(promoted, text))
    return StageResult(
        outputs={"announcement": written},
        counts={"notes": int(webhook is not None)},
        facts={"release": promoted.facts["release"], "posted": webhook is not None},
    )


def announcement(promoted: Manifest, proposed: Manifest) -> str:
    """Return the announcement: what is live now, who approved it and why, and the proposal it came from."""
    facts = promoted.facts
    lines = [
        f"# Release {facts['release']}",
        "",
        f"{facts['model_name']} version {facts['model_version']} with index version {facts['index_version']} is live.",
        f"Approved by {facts['approved_by']}: {facts['reason']}",
    ]
    if facts["mirror_problem"]:
        lines += ["", f"MLflow does not show it yet; the next release stage tries again. {facts['mirror_problem']}"]
    return "\n".join([*lines, "", "## What changed", "", str(proposed.facts["body"]).rstrip(), ""])


def note(promoted: Manifest, text: str) -> dict[str, Any]:
    """Return what the webhook gets. `text` is the key that chat services show."""
    names = ("release", "model_name", "model_version", "index_version", "approved_by", "reason", "evidence_uri")
    return {"event": "millrace.release", "text": text} | {name: promoted.facts[name] for name in names}


def post(url: str, body: dict[str, Any]) -> None:
    """Send `body` as JSON. Raises ServiceUnavailable (worth a retry) or SettingsError (not)."""
    if not url.startswith(("https://", "http://")):
        raise SettingsError("expected MILLRACE_ANNOUNCE_WEBHOOK to be an http(s) URL, found another. Next: correct it.")
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": f"millrace-release-{body['release']}"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code in {408, 429}:
            raise ServiceUnavailable(
                f"expected the webhook to take the note, found {error.code}. Next: retry."
            ) from None
        raise SettingsError(
            f"expected the webhook to take the note, found {error.code}. Next: correct MILLRACE_ANNOUNCE_WEBHOOK; "
            "the release is live."
        ) from None
    except OSError as error:
        raise ServiceUnavailable(
            f"expected the webhook to answer, found {type(error).__name__}. Next: retry."
        ) from None


STAGE = Stage("announce", Options, run, needs=("propose", "promote"))
