"""The assistant's HTTP API, in OpenAI's shapes.

`POST /v1/chat/completions` (whole, or with `stream` as events while it is written), `GET /v1/models`,
`POST /v1/search`, `POST /v1/feedback`, `GET /healthz`
(the process lives), `GET /readyz` (a release is loaded; what is wrong otherwise), `GET /metrics` (for
Prometheus; `guard` says who may ask). Reads and writes through `Assistant` and the feedback table. Every error is OpenAI's error object.
"""

import time
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from starlette.exceptions import HTTPException

from tasks.errors import MillraceError
from tasks.serving.answering import LIVE_MODEL, Assistant, Begun
from tasks.serving.bodies import completion, model_entry, search_result
from tasks.serving.feedback import COMPLETION_ID, FeedbackBox, Said, request_uuid
from tasks.serving.guard import BODY_BYTES, Guard, refusal_response
from tasks.serving.language_model import Sampling
from tasks.serving.metrics import CONTENT_TYPE
from tasks.serving.refusals import InvalidRequest, error_object
from tasks.serving.responses import (
    EVENTS,
    Alive,
    Completion,
    FeedbackTaken,
    Models,
    Readiness,
    SearchResult,
    answers,
    describe,
)
from tasks.serving.streaming import EventStream, chunks
from tasks.serving.tracing import Traced

MAX_TOKENS = 1024
QUESTION_CHARACTERS = 8_000
ASKED = (400, 401, 404, 413, 429, 503)  # what a route that reads a body may refuse with
_TOLD_CHARACTERS = 200  # of a field's name that the caller chose


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("a NUL character cannot be stored")
    return text


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("text is expected, found only blanks")
    return _storable(text)


Text = Annotated[str, Field(max_length=100_000), AfterValidator(_said)]
Turn = Annotated[str, Field(max_length=100_000), AfterValidator(_storable)]
Question = Annotated[str, Field(max_length=QUESTION_CHARACTERS), AfterValidator(_said)]
Client = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
Stop = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_storable)]


class Strict(BaseModel):
    """Base of request bodies: a field that would be ignored is an error."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Strict):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class ChatMessage(Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Turn | Annotated[list[TextPart], Field(min_length=1)] | None

    @field_validator("content")
    @classmethod
    def _said_by_others(cls, content: Any, info: ValidationInfo) -> Any:
        """An answer may have been empty, or left before its first word; a question may not."""
        if isinstance(content, list) or info.data.get("role") == "assistant":
            return content
        return _said(content or "")

    def plain(self) -> dict[str, str]:
        """Return role and text, as a chat template takes them."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Strict):
    """What a stream says at its end."""

    include_usage: bool = Field(default=False, strict=True)
    include_obfuscation: Literal[False] = False


class TextFormat(Strict):
    """The one form of an answer."""

    type: Literal["text"]


class ChatRequest(Strict):
    """Body of /v1/chat/completions. Fields of OpenAI's that are not here are refused, never ignored."""

    model: Client | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=200)]
    max_tokens: int | None = Field(default=None, strict=True, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, strict=True, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, strict=True, ge=0, le=2)
    top_p: float | None = Field(default=None, strict=True, gt=0, le=1)
    seed: int | None = Field(default=None, strict=True, ge=0, lt=2**63)
    n: Literal[1] | None = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = Field(default=False, strict=True)
    stream_options: StreamOptions | None = None
    user: Client | None = ""
    # What chat front ends send although it changes nothing; another value is refused.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    store: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> "ChatRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true")
        return self

    def sampling(self) -> Sampling:
        """Return how tokens are chosen."""
        most = self.max_completion_tokens or self.max_tokens or Sampling.max_tokens
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        temperature = Sampling.temperature if self.temperature is None else self.temperature
        top_p = Sampling.top_p if self.top_p is None else self.top_p
        return Sampling(most, temperature, top_p, self.seed, stop=stop)


class SearchRequest(Strict):
    """Body of /v1/search."""

    query: Question
    k: int = Field(default=5, strict=True, ge=1, le=50)
    user: Client = ""


class FeedbackRequest(Strict):
    """Body of /v1/feedback. `request_id` is the id of a completion, or its `request_id`."""

    request_id: Annotated[str, Field(pattern=COMPLETION_ID)]
    rating: Literal["up", "down"]
    correction: Text | None = None
    comment: Text | None = None
    reviewed_by: Annotated[Text, Field(max_length=200)] | None = None

    def said(self) -> Said:
        """Return what is said of the answer."""
        return Said(self.rating, self.correction, self.comment, self.reviewed_by)


def create_app(
    assistant: Assistant, feedback: FeedbackBox, *, keys: tuple[str, ...] = (), body_bytes: int = BODY_BYTES
) -> FastAPI:
    """Return the application. Its threads are those of `assistant`, which the caller starts and closes."""
    app = FastAPI(title="Millrace assistant", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, keys=keys, body_bytes=body_bytes)
    app.add_middleware(Traced, count=assistant.meters.responded)  # added last, so it is outermost
    _add_error_handlers(app)
    _add_probes(app, assistant)
    describe(app)

    @app.post("/v1/chat/completions", response_model=None, responses=answers(Completion, *ASKED, content=EVENTS))
    def chat(body: ChatRequest) -> Any:
        messages = [plain for message in body.messages if (plain := message.plain())["content"].strip()]
        if not messages:
            raise InvalidRequest("expected a message that says something, found none. Next: add the question.")
        if messages[-1]["role"] != "user":
            raise InvalidRequest(
                f"expected the last message from 'user', found {messages[-1]['role']!r}. Next: add it."
            )
        if len(messages[-1]["content"]) > QUESTION_CHARACTERS:
            raise InvalidRequest(f"expected a question of at most {QUESTION_CHARACTERS} characters. Next: shorten it.")
        asked = messages, body.model, body.sampling(), body.user or ""
        if not body.stream:
            return completion(assistant.chat(*asked))
        events = assistant.stream(*asked)
        begun = next(events)  # what is refused is refused with a status
        assert isinstance(begun, Begun)
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(chunks(begun, events, with_usage=with_usage), events)

    @app.post("/v1/search", response_model=None, responses=answers(SearchResult, *ASKED))
    def search(body: SearchRequest) -> dict[str, Any]:
        return search_result(assistant.search(body.query, body.k, body.user))

    @app.post("/v1/feedback", response_model=None, responses=answers(FeedbackTaken, *ASKED, 403))
    def give_feedback(body: FeedbackRequest, request: Request) -> dict[str, Any]:
        request_id = request_uuid(body.request_id)
        status = feedback.add(request_id, body.said(), getattr(request.state, "key_name", ""))
        return {"object": "feedback", "request_id": str(request_id), "status": status}

    @app.get("/v1/models", response_model=None, responses=answers(Models, 400, 401, 413, 429))
    def models() -> dict[str, Any]:
        live = assistant.releases.live
        names = (LIVE_MODEL, live.release.model_name) if live else ()
        return {"object": "list", "data": [model_entry(name, live.release) for name in names if live]}

    return app


def _add_probes(app: FastAPI, assistant: Assistant) -> None:
    started = time.time()

    @app.get("/healthz", response_model=None, responses=answers(Alive, 400, 413))
    def healthz() -> dict[str, Any]:
        return {"status": "ok", "uptime_seconds": round(time.time() - started, 1)}

    @app.get("/readyz", response_model=None, responses=answers(Readiness, 400, 413) | {503: {"model": Readiness}})
    def readyz() -> JSONResponse:
        live, problem = assistant.releases.live, assistant.releases.problem
        body = {
            "ready": live is not None,
            "release": live.release.release if live else None,
            "model_version": live.release.model_version if live else None,
            "index_version": live.release.index_version if live else None,
            "problem": problem,
            "requests": assistant.requests.counts(),
        }
        return JSONResponse(body, 200 if live else 503)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(assistant.meters.text(), media_type=CONTENT_TYPE)


def _told(text: str) -> str:
    """Return a text that a caller chose as it can be told: of bounded length, without half a character."""
    return text[:_TOLD_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(MillraceError)
    async def refused(_request: Request, error: MillraceError) -> JSONResponse:
        return refusal_response(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = _told(".".join(str(part) for part in first["loc"] if part != "body"))
        more = f" ({len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
        text = f"{place or 'body'}: {first['msg'].lower()}{more}. Next: see GET /openapi.json."
        return JSONResponse(error_object(400, text, "invalid_request", place or None), 400)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # what json.loads cannot take otherwise: too deep, too many digits, no UTF-8
            text = f"body: {str(error.detail).lower()}. Next: send a JSON object in UTF-8."
            return JSONResponse(error_object(400, text, "invalid_request"), 400)
        path = _told(request.url.path)
        text = f"expected a route of GET /openapi.json, found {request.method} {path} ({error.detail})."
        return JSONResponse(error_object(error.status_code, text, "no_route"), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse(error_object(500, "the assistant failed; its log says why.", "internal_error"), 500)
