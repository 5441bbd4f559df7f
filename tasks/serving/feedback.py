"""What people say about an answer: rows of table `feedback`.

Reads `requests` to know that the request was served, and for which API key: to any other key it does not
exist. Writes `feedback`. Feedback that a reviewer has signed is accepted (its correction becomes a training
example), any other waits as pending. Every piece is a row; the view `feedback_thumbs` has the last thumb of
each key on each request. Fails with `UnknownRequest`, with `NotAReviewer`, and with `ServiceUnavailable` when
Postgres does not answer: unlike the request log, feedback is a person's work and is never taken without being kept.
"""

from dataclasses import dataclass
from uuid import UUID

from tasks.database import Connection
from tasks.serving.connection import KeptConnection
from tasks.serving.refusals import InvalidRequest, NotAReviewer, UnknownRequest
from tasks.serving.request_log import RequestLog

COMPLETION_PREFIX = "chatcmpl-"
COMPLETION_ID = r"^(chatcmpl-)?[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}$"


def request_uuid(text: str) -> UUID:
    """Return the request's id from a completion id or a plain one. Raises InvalidRequest."""
    try:
        return UUID(text.removeprefix(COMPLETION_PREFIX))
    except ValueError as error:
        raise InvalidRequest(
            f"expected request_id as an answer gave it, found {text[:60]!r}. Next: use the answer's id."
        ) from error


def parse_reviewers(setting: str | None) -> frozenset[str] | None:
    """Return the names of keys listed in MILLRACE_ASSISTANT_REVIEWERS; None where it is unset: every caller may review."""
    return None if setting is None else frozenset(name for item in setting.split(",") if (name := item.strip()))


@dataclass(frozen=True)
class Said:
    """What somebody says about an answer."""

    rating: str
    correction: str | None = None
    comment: str | None = None
    reviewed_by: str | None = None


class FeedbackBox:
    """Writes feedback."""

    def __init__(
        self, connection: KeptConnection, requests: RequestLog, reviewers: frozenset[str] | None = None
    ) -> None:
        self._connection, self._requests, self._reviewers = connection, requests, reviewers

    def add(self, request_id: UUID, said: Said, key_name: str = "") -> str:
        """Keep one piece of feedback and return its status. `key_name` is that of the key it came with, empty without one.

        Raises UnknownRequest, also for a request that was asked with another key, and NotAReviewer.
        """
        if said.reviewed_by and self._reviewers is not None and key_name not in self._reviewers:
            raise NotAReviewer(
                "expected reviewed_by from a key that may review, found another. "
                "Next: leave it out, or have the key's name added to MILLRACE_ASSISTANT_REVIEWERS."
            )
        status = "accepted" if said.reviewed_by else "pending"

        def work(connection: Connection) -> bool:
            # Asked before the table is: a row that leaves the queue meanwhile is found in the table.
            asked_by = self._requests.key_of(request_id)
            row = connection.execute("SELECT key_name FROM requests WHERE id = %s LIMIT 1", (request_id,)).fetchone()
            asked_by = row["key_name"] if row else asked_by
            if asked_by is None or asked_by not in ("", key_name):
                return False
            connection.execute(
                "INSERT INTO feedback (request_id, key_name, rating, correction, comment, status, reviewed_by) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s)",
                (request_id, key_name, said.rating, said.correction, said.comment, status, said.reviewed_by),
            )
            return True

        if not self._connection.run(work):
            raise UnknownRequest(f"expected the id of a served request, found {request_id}. Next: use the answer's id.")
        return status

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
