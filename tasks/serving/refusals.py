"""What the assistant says no with: an HTTP status, and the fields of OpenAI's error object.

Reads and writes nothing. Errors of `tasks.errors` that are not refusals get their status from
`status_of`: bad input is 400, an absent service is 503, anything else 500.
"""

from tasks.errors import BadInput, MillraceError, TryAgain

LEFT = "ClientLeft"  # the error of a request whose client did not wait for the end: nothing was refused, and nothing failed
INSUFFICIENT = "insufficient_quota"  # OpenAI's type and code: its clients do not wait for this one
OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Refusal:
    """Status and code of an error that has its own; mixed into a class of `tasks.errors`."""

    status = 400
    code = "invalid_request"
    param: str | None = None
    retry_after = 1.0  # seconds; told with 429 and 503


class InvalidRequest(Refusal, BadInput):
    """A field of the request is missing, malformed, or not supported."""


class UnknownModel(Refusal, BadInput):
    """The request names a model that is not the live release's."""

    status, code, param = 404, "model_not_found", "model"


class UnknownRequest(Refusal, BadInput):
    """Feedback names a request that was never served."""

    status, code, param = 404, "request_not_found", "request_id"


class NotAReviewer(Refusal, BadInput):
    """Feedback is signed with a key that may not review."""

    status, code, param = 403, "not_a_reviewer", "reviewed_by"


class QuestionTooLong(Refusal, BadInput):
    """The messages alone do not fit the model's window."""

    code, param = "context_length_exceeded", "messages"


class KeyRefused(Refusal, BadInput):
    """The request carries no API key, or one that is not accepted."""

    status, code = 401, "invalid_api_key"


class QuestionRefused(Refusal, BadInput):
    """The messages hold instructions to the model, and the assistant is set to refuse them."""

    code, param = "content_policy_violation", "messages"


class BodyTooLarge(Refusal, BadInput):
    """The request's body is larger than the assistant reads."""

    status, code = 413, "request_too_large"


class Busy(Refusal, TryAgain):
    """As many requests wait as the assistant lets wait."""

    status, code = 429, "too_many_waiting"


class LimitReached(Refusal, TryAgain):
    """A client has asked for as much as it may for now; `limit` says of what."""

    status = 429
    limit = ""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(LimitReached):
    """A client has sent as many requests as it may in a minute."""

    code, limit = "rate_limit_exceeded", "requests_per_minute"


class QuotaUsedUp(LimitReached):
    """A client has used the tokens of its day."""

    code, limit = INSUFFICIENT, "tokens_per_day"


class TooLate(Refusal, TryAgain):
    """The model had no time for the request before its time was over, or nobody waits for it any more."""

    status, code = 503, "too_late"


class NoRelease(Refusal, TryAgain):
    """No release is loaded."""

    status, code = 503, "no_release"


class KnowledgeAway(Refusal, TryAgain):
    """The index cannot be searched: Postgres, the embedder or the reranker does not answer, or not as it should."""

    status, code = 503, "knowledge_unavailable"


class GenerationAway(Refusal, TryAgain):
    """The model's server cannot be reached, or takes no request of ours: nothing is known against the model."""

    status, code = 503, "generation_unavailable"


class GenerationBroke(Refusal, TryAgain):
    """The model's server failed at a generation, or told something else than an answer."""

    status, code = 502, "generation_failed"


def status_of(error: MillraceError) -> tuple[int, str, str | None]:
    """Return HTTP status, code and param of any error."""
    if isinstance(error, Refusal):
        return error.status, error.code, error.param
    if isinstance(error, BadInput):
        return 400, "invalid_request", None
    return (503, "service_unavailable", None) if isinstance(error, TryAgain) else (500, "internal_error", None)


def error_object(status: int, message: str, code: str, param: str | None = None) -> dict[str, object]:
    """Return OpenAI's error object."""
    kind = OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    kind = INSUFFICIENT if code == INSUFFICIENT else kind
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
