"""What the API answers with, as /openapi.json declares it; `tests/serving/test_fuzzing.py` holds the answers to it.

Answers are made by `bodies`, `streaming` and `refusals`; these models only describe them, so a field that one of those adds
need not be here. Reads and writes nothing.
"""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

_MEANING = {
    400: "Malformed, or more than this assistant takes; the object says what and where",
    401: "No accepted API key",
    403: "The key may not do this",
    404: "The model or the request is not known",
    413: "The body is too large",
    429: "Too much at once: come back after Retry-After seconds",
    500: "The assistant failed; its log says why",
    502: "The model began, and failed",
    503: "The release, the index or Postgres is away: come back after Retry-After seconds",
}
_RETRY = {"Retry-After": {"description": "Seconds until another try may succeed", "schema": {"type": "string"}}}


class Declared(BaseModel):
    """Base of the described answers: other fields may stand beside."""

    model_config = ConfigDict(extra="allow")


class ErrorFields(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str

    model_config = ConfigDict(extra="forbid")


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    error: ErrorFields

    model_config = ConfigDict(extra="forbid")


class Document(Declared):
    """A chunk that an answer was made from, or that a search found."""

    uri: str
    title: str
    score: float
    chunk_id: str
    ordinal: int
    start: int | None
    end: int | None
    headings: list[str]
    page: int | None
    last_page: int | None
    parts: dict[str, float | None]
    index_version: int
    text: str


class AnswerMessage(Declared):
    """The answer's text."""

    role: Literal["assistant"]
    content: str


class Choice(Declared):
    """The one answer."""

    index: Literal[0]
    message: AnswerMessage
    logprobs: None
    finish_reason: str


class Usage(Declared):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(Declared):
    """OpenAI's chat completion, with the documents it was made from."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    request_id: str
    documents: list[Document]
    millrace: dict[str, Any]


class SearchResult(Declared):
    """What a search found."""

    object: Literal["search.result"]
    id: str
    request_id: str
    data: list[Document]
    millrace: dict[str, Any]


class FeedbackTaken(Declared):
    """Feedback that is kept: pending until a reviewer has accepted it."""

    object: Literal["feedback"]
    request_id: str
    status: Literal["pending", "accepted"]


class ModelEntry(Declared):
    """A name to ask for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    millrace: dict[str, Any]


class Models(Declared):
    """The names to ask for."""

    object: Literal["list"]
    data: list[ModelEntry]


class Alive(Declared):
    """The process lives."""

    status: Literal["ok"]
    uptime_seconds: float


class Readiness(Declared):
    """What is loaded, and what is wrong."""

    ready: bool
    release: int | None
    model_version: str | None
    index_version: int | None
    signatures: str
    problem: str | None
    requests: dict[str, int]


Responses = dict[int | str, dict[str, Any]]
EVENTS = {
    "text/event-stream": {"schema": {"type": "string", "description": "chat.completion.chunk objects, then [DONE]"}}
}


def answers(model: type[BaseModel], *errors: int, **more: Any) -> Responses:
    """Return what a route declares: its answer, and the error object for each status it may refuse with."""
    declared: Responses = {200: {"model": model, "description": (model.__doc__ or "").strip(), **more}}
    for status in (*errors, 500):
        declared[status] = {"model": ErrorBody, "description": _MEANING[status]}
        if status in {429, 503}:
            declared[status]["headers"] = _RETRY
    return declared


def describe(app: FastAPI) -> None:
    """Let /openapi.json be without FastAPI's own 422, which this API answers with 400."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for methods in found["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]
