"""The assistant's prompt: a Markdown file with front matter, released together with model and index.

Front matter (YAML between two lines of `---`): `name`, `version`, `documents` (how many chunks are
looked up), `context_tokens` (how much of the model's window they may take), `system` (optional),
`repetition_penalty` (on what the answer itself already holds: small models go round in circles), `unknown`
(what is answered where no document is good enough: MILLRACE_ASSISTANT_MIN_SCORE).
The text below it holds `{context}` and `{question}` once each. Reads one file or the text kept in
the ledger; writes nothing. Fails with `ReleaseError` when the text cannot be used.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.errors import ReleaseError

_FRONT = re.compile(r"\A---\n(?P<front>.*?\n)---\n(?P<body>.*)\Z", re.DOTALL)
_PLACES = re.compile(r"\{(context|question)\}")


class Front(BaseModel):
    """The front matter of a prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    version: int = Field(ge=1)
    documents: int = Field(default=3, ge=1, le=20)
    context_tokens: int = Field(default=480, ge=32)
    system: str = ""
    repetition_penalty: float = Field(default=1.0, ge=1, le=2)
    unknown: str = Field(default="I do not know: no document that I have answers this.", min_length=1)


@dataclass(frozen=True)
class Prompt:
    """A prompt that can be used: its front matter, its body, and the text both came from."""

    front: Front
    body: str
    text: str

    @property
    def sha256(self) -> str:
        """The digest that a release records."""
        return prompt_digest(self.text)

    def render(self, context: str, question: str) -> str:
        """Return the body with both places filled. Braces inside `context` or `question` stay as they are."""
        values = {"context": context, "question": question}
        return _PLACES.sub(lambda match: values[match[1]], self.body)


def prompt_digest(text: str) -> str:
    """Return the SHA-256 of a prompt's whole text, front matter included."""
    return hashlib.sha256(text.encode()).hexdigest()


def parse_prompt(text: str, origin: str) -> Prompt:
    """Return the prompt in `text`; `origin` names it in errors. Raises ReleaseError."""
    match = _FRONT.match(text)
    if match is None:
        raise ReleaseError(
            f"expected {origin} to start with front matter between two lines of '---', found none. "
            "Next: see tasks/serving/prompts/assistant.md."
        )
    body = match["body"].strip()
    for place in ("context", "question"):
        found = body.count("{" + place + "}")
        if found != 1:
            raise ReleaseError(
                f"expected {{{place}}} once in the body of {origin}, found it {found} times. Next: correct the prompt."
            )
    try:
        front = Front.model_validate(yaml.safe_load(match["front"]))
    except (yaml.YAMLError, ValidationError) as error:
        raise ReleaseError(
            f"expected front matter with {', '.join(Front.model_fields)} in {origin}, found: {error}. "
            "Next: correct the prompt."
        ) from error
    return Prompt(front, body, text)


def load_prompt(path: Path) -> Prompt:
    """Return the prompt in the file `path`. Raises ReleaseError when there is none that can be used."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseError(
            f"expected a prompt file at {path}, found {error}. Next: correct MILLRACE_PROMPT."
        ) from error
    return parse_prompt(text, str(path))
