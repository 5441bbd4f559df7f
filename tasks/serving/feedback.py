"""What people say about an answer: rows of table `feedback`.

Reads `requests` to know that the request was served, writes `feedback`. Feedback that a reviewer has
signed is accepted (its correction becomes a training example), any other waits as pending. Fails with
`UnknownRequest`, and with `ServiceUnavailable` when Postgres does not answer: unlike the request log,
feedback is a person's work and is never taken without being kept.
"""

from uuid import UUID

from tasks.database import Connection
from tasks.serving.connection import KeptConnection
from tasks.serving.refusals import InvalidRequest, UnknownRequest
from tasks.serving.request_log import RequestLog

COMPLETION_PREFIX = "chatcmpl-"


def request_uuid(text: str) -> UUID:
    """Return the request's id from a completion id or a plain one. Raises InvalidRequest."""
    try:
        return UUID(text.removeprefix(COMPLETION_PREFIX))
    except ValueError as error:
        raise InvalidRequest(
            f"expected request_id as an answer gave it, found {text[:60]!r}. Next: use the answer's id."
        ) from error


class FeedbackBox:
    """Writes feedback."""

    def __init__(self, connection: KeptConnection, requests: RequestLog) -> None:
        self._connection, self._requests = connection, requests

    def add(
        self, request_id: UUID, rating: str, correction: str | None, comment: str | None, reviewed_by: str | None
    ) -> str:
        """Keep one piece of feedback and return its status. Raises UnknownRequest."""
        status = "accepted" if reviewed_by else "pending"

        def work(connection: Connection) -> bool:
            row = connection.execute("SELECT 1 FROM requests WHERE id = %s LIMIT 1", (request_id,)).fetchone()
            if row is None and not self._requests.knows(request_id):
                return False
            connection.execute(
                "INSERT INTO feedback (request_id, rating, correction, comment, status, reviewed_by) "
                "VALUES (%s, %s, %s, %s, %s, %s)",
                (request_id, rating, correction, comment, status, reviewed_by),
            )
            return True

        if not self._connection.run(work):
            raise UnknownRequest(f"expected the id of a served request, found {request_id}. Next: use the answer's id.")
        return status

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
