"""An answer while it is written: server-sent events with OpenAI's `chat.completion.chunk` objects.

Takes what `Assistant.stream` yields. The first chunk has the role, the request's id and the documents; then come the pieces
of the text, the reason of its end, the usage where it is asked for, and `[DONE]`. What goes wrong after the first chunk has no
status left to be told with: it is an event with OpenAI's error object, and then the stream ends. A client that goes away, or
does not take what it is sent, ends the generation. Writes nothing.
"""

import json
import logging
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from tasks.errors import MillraceError
from tasks.serving.answering import Answered, Begun
from tasks.serving.bodies import about, told, usage
from tasks.serving.hits import cited
from tasks.serving.refusals import error_object, status_of

log = logging.getLogger(__name__)

STALLED_SECONDS = 30.0  # a client that takes nothing for so long is gone
DONE = "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Sends events as they come, in a thread of their own making."""

    media_type = "text/event-stream"

    def __init__(self, events: Generator[str]) -> None:
        # Proxies must not collect it first.
        self._events = _closing(events)
        super().__init__(self._events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def stream_response(self, send: Send) -> None:
        """Send everything; raise OSError, as for a client that left, when nothing is taken for STALLED_SECONDS."""

        async def patient(message: Message) -> None:
            try:
                with anyio.fail_after(STALLED_SECONDS):
                    await send(message)
            except TimeoutError as error:
                raise OSError(f"the client took nothing for {STALLED_SECONDS:.0f} s") from error

        try:
            await super().stream_response(patient)
        except OSError as error:
            log.warning("an answer was not taken to its end: %s", error)
        finally:
            await self._events.aclose()


async def _closing(events: Generator[str]) -> AsyncGenerator[str]:
    """Yield the events, each made in a thread, and close their generator when nobody takes more."""
    try:
        while (event := await run_sync(next, events, None)) is not None:
            yield event
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(events.close)


def chunks(begun: Begun, events: Iterator[Begun | str | Answered], *, with_usage: bool) -> Generator[str]:
    """Yield the events of an answer that has begun. Closing it closes `events`."""
    base = about(begun.row, begun.loaded.release, "chat.completion.chunk") | ({"usage": None} if with_usage else {})

    def chunk(delta: dict[str, str], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(base | {"choices": [choice]} | more)

    try:
        shown = [cited(hit) for hit in begun.built.shown]
        yield chunk({"role": "assistant", "content": ""}, request_id=str(begun.row.id), documents=shown)
        for found in events:
            if isinstance(found, str):
                yield chunk({"content": found})
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
    finally:
        if isinstance(events, Generator):
            events.close()


def event(body: dict[str, Any]) -> str:
    """Return one server-sent event."""
    return f"data: {json.dumps(body)}\n\n"
