"""An answer while it is written: server-sent events with OpenAI's `chat.completion.chunk` objects.

Takes what `Assistant.stream` yields. The first chunk has the role, the request's id and the documents; then come the pieces
of the text, the reason of its end, the usage where it is asked for, and `[DONE]`. What goes wrong after the first chunk has no
status left to be told with: it is an event with OpenAI's error object, and then the stream ends. A client that goes away, or
does not take what it is sent, ends the generation. Writes nothing.
"""

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from tasks.errors import MillraceError
from tasks.serving.answering import ANSWER_SECONDS, Answered, Begun
from tasks.serving.bodies import about, told, usage
from tasks.serving.hits import cited
from tasks.serving.refusals import error_object, status_of

log = logging.getLogger(__name__)

STALLED_SECONDS = 30.0  # a client that takes nothing for so long is gone
DONE = "data: [DONE]\n\n"
WAITING = ": waiting\n\n"


class EventStream(StreamingResponse):
    """Sends events as they come, each made in a thread; closes `sources`, generators, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, events: Generator[str], *sources: Generator[Any], seconds: float = ANSWER_SECONDS) -> None:
        self._all, self._seconds = (events, *sources), seconds
        # Proxies must not collect it first.
        super().__init__(_in_threads(events), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, unless the client leaves or takes nothing for STALLED_SECONDS, or too little until the answer is long over."""

        async def patient(message: Message) -> None:
            with anyio.fail_after(STALLED_SECONDS):
                await send(message)

        try:
            with anyio.fail_after(self._seconds + STALLED_SECONDS):
                await super().__call__(scope, receive, patient)
        except (TimeoutError, OSError, ClientDisconnect) as error:
            log.warning("an answer was not taken to its end: %s", str(error) or type(error).__name__)
        finally:
            with anyio.CancelScope(shield=True):
                for generator in self._all:
                    await run_sync(_close, generator)


async def _in_threads(events: Generator[str]) -> AsyncGenerator[str]:
    while (event := await run_sync(next, events, None)) is not None:
        yield event


def _close(generator: Generator[Any]) -> None:
    # A server that is torn down does not wait for the thread that is in it: that one ends it.
    with contextlib.suppress(ValueError):
        generator.close()


def chunks(begun: Begun, events: Iterator[Begun | str | Answered], *, with_usage: bool) -> Generator[str]:
    """Yield the events of an answer that has begun; a comment, which clients pass over, where nothing is new."""
    base = about(begun.row, begun.loaded.release, "chat.completion.chunk") | ({"usage": None} if with_usage else {})

    def chunk(delta: dict[str, str], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(base | {"choices": [choice]} | more)

    try:
        shown = [cited(hit) for hit in begun.built.shown]
        yield chunk({"role": "assistant", "content": ""}, request_id=str(begun.row.id), documents=shown)
        for found in events:
            if isinstance(found, str):
                yield chunk({"content": found}) if found else WAITING
            elif isinstance(found, Answered):
                yield chunk({}, found.generated.finish_reason, millrace=told(found))
                if with_usage:
                    yield event(base | {"choices": [], "usage": usage(found.generated)})
        yield DONE
    except MillraceError as error:
        status, code, param = status_of(error)
        yield event(error_object(status, str(error), code, param))
    except Exception:  # the status is sent: what remains is to say so, and to have it in the log
        log.exception("request=%s broke after its first chunk", begun.row.id)
        yield event(error_object(500, "the assistant failed; its log says why.", "internal_error"))


def event(body: dict[str, Any]) -> str:
    """Return one server-sent event."""
    return f"data: {json.dumps(body)}\n\n"
