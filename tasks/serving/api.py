"""The assistant's HTTP API, in OpenAI's shapes.

`POST /v1/chat/completions` (whole, or with `stream` as events while it is written), `GET /v1/models`,
`POST /v1/search`, `POST /v1/feedback`, `GET /healthz`
(the process lives), `GET /readyz` (a release is loaded; what is wrong otherwise), `GET /metrics` (for
Prometheus; `guard` says who may ask). Reads and writes through `Assistant` and the feedback table. Every error is OpenAI's error object.
"""

import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from tasks.errors import MillraceError
from tasks.observability.redaction import hidden
from tasks.serving.answering import LIVE_MODEL, Assistant, Begun
from tasks.serving.asked import QUESTION_CHARACTERS, ChatRequest, FeedbackRequest, SearchRequest
from tasks.serving.bodies import completion, model_entry, search_result
from tasks.serving.feedback import FeedbackBox, request_uuid
from tasks.serving.guard import BODY_BYTES, Guard, refusal_response
from tasks.serving.keys import Key, key_name
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

ASKED = (400, 401, 404, 413, 429, 503)  # what a route that reads a body may refuse with
_TOLD_CHARACTERS = 200  # of a field's name that the caller chose


def create_app(
    assistant: Assistant, feedback: FeedbackBox, *, keys: tuple[Key, ...] = (), body_bytes: int = BODY_BYTES
) -> FastAPI:
    """Return the application. Its threads are those of `assistant`, which the caller starts and closes."""
    app = FastAPI(title="Millrace assistant", docs_url=None, redoc_url=None)
    app.add_middleware(
        Guard, keys=keys, body_bytes=body_bytes, limits=assistant.limits, limited=assistant.meters.limited
    )
    app.add_middleware(Traced, count=assistant.meters.responded)  # added last, so it is outermost
    _add_error_handlers(app)
    _add_probes(app, assistant)
    describe(app)

    @app.post("/v1/chat/completions", response_model=None, responses=answers(Completion, *ASKED, 502, content=EVENTS))
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
        return EventStream(chunks(begun, events, with_usage=with_usage), events, seconds=assistant.seconds)

    @app.post("/v1/search", response_model=None, responses=answers(SearchResult, *ASKED))
    def search(body: SearchRequest) -> dict[str, Any]:
        return search_result(assistant.search(body.query, body.k, body.user))

    @app.post("/v1/feedback", response_model=None, responses=answers(FeedbackTaken, *ASKED, 403))
    def give_feedback(body: FeedbackRequest) -> dict[str, Any]:
        request_id = request_uuid(body.request_id)
        status = feedback.add(request_id, body.said(), key_name())
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
            "newest_release": assistant.releases.newest,
            "fallback": assistant.releases.fallback,
            "signatures": "checked" if assistant.releases.checks_signatures else "not checked",
            # Whoever reaches the port reads this: addresses hold passwords.
            "problem": hidden(problem) if problem else problem,
            "shadow": hidden(assistant.shadow.problem) if assistant.shadow.problem else None,
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
