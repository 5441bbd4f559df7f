"""Where a release is announced: a webhook, Slack and mail, each where its settings say so, and each told once.

Reads the settings `announce_*`. Writes `sent/NAME.json` in the stage's folder for each channel that took the note, so that
a retry leaves it out; a crash between the two may send a note again, with the same key or Message-ID. Addresses of
webhooks and passwords are secrets: they are in no text. `send_all` asks every channel whatever becomes of the others, then
fails with `ServiceUnavailable` where a retry may help one that failed, and with `SettingsError` where it cannot.
"""

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from tasks.contracts import digest
from tasks.errors import ServiceUnavailable, SettingsError
from tasks.release.mail import Mailbox, mailbox
from tasks.settings import Settings
from tasks.stage import StageContext

_SECONDS = 10
_SLACK_TEXT = 2_900  # Slack takes 3000 characters in a section, and 150 in a header


@dataclass(frozen=True)
class News:
    """What is announced: one line, the whole text in Markdown, the figures for programs, and the run that made it."""

    title: str
    text: str
    note: dict[str, Any]
    run: str

    @property
    def key(self) -> str:
        """The same at each retry, so that a receiver can tell a double; another in every installation, which all count from 1."""
        return f"millrace-release-{self.note['release']}-{digest([self.note['model_name'], self.run])[:16]}"


@dataclass(frozen=True)
class Channel:
    """One receiver. `name` is shown; `send` raises ServiceUnavailable or SettingsError."""

    name: str
    send: Callable[[News], None]


def channels(settings: Settings) -> list[Channel]:
    """Return every receiver that the settings name. Raises SettingsError for half of a mail server."""
    found: list[Channel] = []
    if settings.announce_webhook:
        found.append(_hook("webhook", settings.announce_webhook, "MILLRACE_ANNOUNCE_WEBHOOK", lambda news: news.note))
    if settings.announce_slack:
        found.append(_hook("slack", settings.announce_slack, "MILLRACE_ANNOUNCE_SLACK", blocks))
    box = mailbox(settings)
    return found + ([_mail(box, address) for address in box.to] if box else [])


def send_all(context: StageContext, news: News) -> dict[str, list[str]]:
    """Tell every channel that has not been told. Raises ServiceUnavailable or SettingsError, naming those that failed."""
    told: dict[str, list[str]] = {"sent": [], "sent_before": []}
    failed: dict[str, ServiceUnavailable | SettingsError] = {}
    for channel in channels(context.settings):
        record = f"{context.folder}/sent/{hashlib.sha256(channel.name.encode()).hexdigest()[:16]}.json"
        if context.storage.exists(record):
            told["sent_before"].append(channel.name)
            continue
        try:
            channel.send(news)
        except (ServiceUnavailable, SettingsError) as error:
            failed[channel.name] = error
            continue
        context.storage.put_json(record, {"channel": channel.name, "key": news.key})
        told["sent"].append(channel.name)
    if failed:
        again = any(isinstance(error, ServiceUnavailable) for error in failed.values())
        raise (ServiceUnavailable if again else SettingsError)(
            f"expected every channel to take the note of release {news.note['release']}, which is live, found "
            + "; ".join(f"{name}: {error}" for name, error in failed.items())
        )
    return told


def post(url: SecretStr, variable: str, body: dict[str, Any], key: str) -> None:
    """Send `body` as JSON. Raises ServiceUnavailable (worth a retry) or SettingsError (not)."""
    address = url.get_secret_value()
    if not address.startswith(("https://", "http://")):
        raise SettingsError(f"expected {variable} to be an http(s) URL, found another. Next: correct it.")
    try:
        request = urllib.request.Request(
            address,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Idempotency-Key": key},
            method="POST",
        )
        with _OPENER.open(request, timeout=_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        raise _answered(error.code, variable) from None
    except (http.client.InvalidURL, ValueError) as error:
        raise SettingsError(
            f"expected {variable} to be an address that can be asked, found {type(error).__name__}. Next: correct it."
        ) from None
    except (OSError, http.client.HTTPException) as error:  # what does not speak HTTP is no OSError
        raise ServiceUnavailable(f"expected it to answer, found {type(error).__name__}. Next: retry.") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect an error: urllib would go on by GET, without the note, and report success."""

    def redirect_request(self, *_: Any) -> None:
        """Go nowhere else."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def _answered(status: int, variable: str) -> ServiceUnavailable | SettingsError:
    if status >= 500 or status in {408, 429}:
        return ServiceUnavailable(f"expected it to take the note, found {status}. Next: retry.")
    what, where = ("a redirect, which is not followed", " to the address itself") if status < 400 else ("no", "")
    return SettingsError(
        f"expected it to take the note, found {status}, {what}. Next: correct {variable}{where}, then clear the task."
    )


def blocks(news: News) -> dict[str, Any]:
    """Return a note for a Slack incoming webhook: `text` for notifications, blocks for the channel."""
    note = news.note
    lines = [
        f"{note['model_name']} version {note['model_version']} with index version {note['index_version']} is live.",
        f"{'Rolled back' if note['kind'] == 'rollback' else 'Approved'} by {note['approved_by']}: {note['reason']}",
    ]
    evidence = {"type": "mrkdwn", "text": _escaped(f"evidence: {note['evidence_uri']}")}
    return {
        "text": _escaped(news.title),
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": news.title[:150]}},
            {"type": "section", "text": {"type": "mrkdwn", "text": _escaped("\n".join(lines))[:_SLACK_TEXT]}},
            {"type": "context", "elements": [evidence]},
        ],
    }


def _escaped(text: str) -> str:
    """Slack reads `<!channel>` and the like as commands; a reason is a person's text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _hook(name: str, url: SecretStr, variable: str, body: Callable[[News], dict[str, Any]]) -> Channel:
    return Channel(name, lambda news: post(url, variable, body(news), news.key))


def _mail(box: Mailbox, address: str) -> Channel:
    return Channel(f"mail to {address}", lambda news: box.send(address, news.title, news.text, news.key))
