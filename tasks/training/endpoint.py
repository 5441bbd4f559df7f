"""One reply of a model behind an OpenAI-compatible endpoint, asked for again while the endpoint says that it is busy.

Reads and writes nothing but HTTP. Fails with `SettingsError` when the endpoint refuses the request (key, model, address) or is
another kind of server, and with `ServiceUnavailable` when it does not answer, or says so (429, 5xx) several times.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import SecretStr

from tasks.errors import ServiceUnavailable, SettingsError

WORKERS = 8
_TRIES = 5
_LONGEST_WAIT = 30.0


@dataclass(frozen=True)
class ChatEndpoint:
    """A model behind an address. `who` it is for us, and the `setting` that names it, are told in errors."""

    who: str
    setting: str
    url: str
    model: str
    key: SecretStr | None = None
    kept: str = ""  # what a try later need not do again
    wait: Callable[[float], None] = time.sleep

    def client(self) -> httpx.Client:
        """Return a client that carries the key, to be closed by the caller."""
        headers = {"Authorization": f"Bearer {self.key.get_secret_value()}"} if self.key else {}
        return httpx.Client(headers=headers, timeout=120, limits=httpx.Limits(max_connections=WORKERS))

    def reply(self, http: httpx.Client, body: dict[str, Any]) -> str:
        """Return the text of a completion. Raises SettingsError, ServiceUnavailable."""
        url, told = f"{self.url.rstrip('/')}/chat/completions", "nothing"
        for attempt in range(_TRIES):
            if attempt:
                self.wait(min(_LONGEST_WAIT, 2.0**attempt))
            try:
                response = http.post(url, json=body)
            except httpx.TransportError as error:
                told = type(error).__name__
                continue
            if response.status_code == 429 or response.status_code >= 500:
                told = f"status {response.status_code}"
                continue
            return self._content(response)
        raise ServiceUnavailable(
            f"expected the {self.who} to answer at {self.setting}_URL, found {told} {_TRIES} times. "
            f"Next: try again later{self.kept}, or unset {self.setting}_URL."
        )

    def _content(self, response: httpx.Response) -> str:
        if response.status_code != 200:
            raise SettingsError(
                f"expected the {self.who} to take a request for {self.model!r}, found status {response.status_code}. "
                f"Next: check {self.setting}_URL (it ends before /chat/completions), _MODEL and _KEY."
            )
        try:
            return str(response.json()["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise SettingsError(
                f"expected an OpenAI-compatible reply from the {self.who}, found another ({type(error).__name__}). "
                f"Next: correct {self.setting}_URL."
            ) from error
