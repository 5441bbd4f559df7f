"""A model server as the assistant asks it: OpenAI's completions, and the adapters of vLLM beside a base model.

Speaks HTTP with one server: `GET /v1/models` (what is served; `parent` names an adapter's base, `root` where it was loaded
from), `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter` (vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING), and
`POST /v1/completions` with token ids as prompt, as a stream. Every call has its time limits. What the server says of an
error goes to the log, without the key; nobody else is told it. Fails with `httpx.TransportError`, `BadStatus`, `BadAnswer`.
"""

import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from tasks.errors import SettingsError

log = logging.getLogger(__name__)

CONNECT_SECONDS, ASK_SECONDS, LOAD_SECONDS = 5.0, 15.0, 180.0
STALLED_SECONDS = 60.0  # a stream that says nothing for so long is broken
_TOLD = 300  # characters of an error for the log


class BadStatus(Exception):
    """The server answered with another status than 200."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class BadAnswer(Exception):
    """The server answered with something that is not what was asked for."""


class Card(BaseModel):
    """A model that is served; `parent` is None for a base model."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Listing(BaseModel):
    data: list[Card]


class Usage(BaseModel):
    """What a generation took so far."""

    prompt_tokens: int
    completion_tokens: int


class Choice(BaseModel):
    """A piece of the answer, and at its end why it ended."""

    text: str = ""
    finish_reason: str | None = None


class Event(BaseModel):
    """One event of a stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class ModelServer:
    """One server. Its coroutines run on one event loop."""

    def __init__(self, url: str, key: str | None, stalled_seconds: float = STALLED_SECONDS) -> None:
        try:
            base = httpx.URL(url.rstrip("/") + "/")
        except httpx.InvalidURL as error:
            raise _no_url() from error
        if base.scheme not in {"http", "https"} or not base.host:
            raise _no_url()
        self._key, self._stalled = key, stalled_seconds
        self._http = httpx.AsyncClient(
            base_url=base,
            trust_env=base.host not in {"127.0.0.1", "localhost", "::1"},  # no proxy for what is in this pod
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ASK_SECONDS, connect=CONNECT_SECONDS),
            # A connection that the server closes as it is used again would look like a server that is away.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def models(self) -> dict[str, Card]:
        """Return what is served, by name."""
        response = await self._http.get("models")
        await self._check(response)
        try:
            listing = _Listing.model_validate_json(response.content)
        except ValidationError as error:
            raise BadAnswer("no list of models") from error
        return {card.id: card for card in listing.data}

    async def load(self, name: str, path: str) -> None:
        """Have an adapter loaded from a folder that the server sees."""
        body = {"lora_name": name, "lora_path": path}
        await self._check(await self._http.post("load_lora_adapter", json=body, timeout=LOAD_SECONDS))

    async def unload(self, name: str) -> None:
        """Have an adapter dropped."""
        await self._check(await self._http.post("unload_lora_adapter", json={"lora_name": name}))

    async def completion(self, body: dict[str, Any]) -> AsyncIterator[Event]:
        """Yield the events of a generation. Closing this before its end ends the request, and with it the server's work."""
        timeout = httpx.Timeout(self._stalled, connect=CONNECT_SECONDS)
        async with self._http.stream("POST", "completions", json=body, timeout=timeout) as response:
            await self._check(response)
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                yield self._event(data)

    def _event(self, data: str) -> Event:
        try:
            event = Event.model_validate_json(data)
        except ValidationError as error:
            self._tell("an event that is none", data)
            raise BadAnswer("an event that is none") from error
        if event.error is not None:
            self._tell("an error in a stream", data)
            raise BadAnswer("an error in its stream")
        return event

    async def _check(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        told = b""
        async for block in response.aiter_bytes():
            told += block
            if len(told) >= _TOLD:
                break
        self._tell(f"status {response.status_code} to {response.url.path}", told.decode(errors="replace"))
        raise BadStatus(response.status_code)

    def _tell(self, what: str, text: str) -> None:
        if self._key:
            text = text.replace(self._key, "***")
        log.warning("the model server answered %s: %r", what, text[:_TOLD])

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _no_url() -> SettingsError:
    return SettingsError(
        "expected MILLRACE_GENERATION_URL to be http://HOST/v1, found something else. Next: correct the setting."
    )
