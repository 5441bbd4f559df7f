"""The bodies that the API takes: OpenAI's fields, checked strictly. A field that would be ignored is an error, and so is a text
that Postgres cannot keep. Reads and writes nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from tasks.serving.feedback import COMPLETION_ID, Said
from tasks.serving.language_model import Sampling

MAX_TOKENS = 1024
QUESTION_CHARACTERS = 8_000


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
