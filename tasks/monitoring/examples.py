"""Questions that people are shown: read by the id of their request, redacted, cut. Reads `requests`; writes nothing.

Nothing that `expectations/screening.yaml` masks leaves the database, and a question that the policy blocks (a secret,
instructions to a model) is named and not shown.
"""

from collections.abc import Sequence

from tasks.database import Connection
from tasks.screening import load_policy, screen

LONGEST = 200


def shown(connection: Connection, ids: Sequence[str]) -> list[str]:
    """Return the questions of requests as they may be shown, in the order of `ids`; one that is gone is left out."""
    rows = connection.execute("SELECT id::text AS id, question FROM requests WHERE id = ANY(%s::uuid[])", (list(ids),))
    found = {row["id"]: row["question"] for row in rows}
    return [safe(found[name]) for name in ids if name in found]


def safe(question: str) -> str:
    """Return a question as it may be shown."""
    screened = screen(question, load_policy())
    if screened.blocked:
        return f"(not shown: {', '.join(sorted(screened.blocked))})"
    text = " ".join(screened.text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
