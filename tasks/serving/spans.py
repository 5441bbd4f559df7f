"""One request as the spans of a trace, in OTLP's JSON form. Pure: reads a clock, writes nothing.

Built after the request has ended, from its row (as it goes to the request log, redaction included) and from the moments
noted meanwhile. Names and attributes are OpenTelemetry's for generative AI (`gen_ai.*`, development, as
opentelemetry-semantic-conventions 0.66b2 has them); `gen_ai.server.time_to_first_token` is the name of a metric there and an
attribute here; `mlflow.*` are those that MLflow shows (kinds of spans, token usage, tags of the trace). The prompt's text is
in no span, only its size: it holds earlier turns and documents, which the row does not hold either.

The trace's id is the request's, so that each request is one trace that can be found, and erased, by its row: in MLflow two
requests of one W3C trace would become one, with the tags of the last. The W3C id is the tag `millrace.trace_id`.
"""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tasks.serving.refusals import LEFT
from tasks.serving.request_log import RequestRow

if TYPE_CHECKING:
    from tasks.release.ledger import Release
    from tasks.serving.language_model import Generated, Sampling
    from tasks.serving.prompt import Prompt
    from tasks.serving.prompting import BuiltPrompt

SERVICE = "millrace-assistant"
EXPERIMENT = "millrace-assistant"  # of MLflow, in which the traces are
_INTERNAL, _OK, _ERROR = 1, 1, 2  # SpanKind and status codes of OTLP
Span = dict[str, Any]


@dataclass
class Steps:
    """When the steps of a request began and ended (nanoseconds since 1970), and what was made in them.

    It may wait for MLflow for long, so it names the release and holds nothing of its model.
    """

    began: int = field(default_factory=time.time_ns)
    times: dict[str, tuple[int, int]] = field(default_factory=dict)
    release: "Release | None" = None
    prompt: "Prompt | None" = None
    built: "BuiltPrompt | None" = None
    sampling: "Sampling | None" = None
    generated: "Generated | None" = None
    _clock: int = field(default_factory=time.monotonic_ns)

    def now(self) -> int:
        """Return the time, by a clock that never goes back."""
        return self.began + time.monotonic_ns() - self._clock

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note when the block begins and ends, also when it fails."""
        started = self.now()
        try:
            yield
        finally:
            self.times[name] = (started, self.now())


def trace_name(request_id: UUID) -> str:
    """Return the id that MLflow gives the trace of a request."""
    return f"tr-{request_id.hex}"


def trace_of(row: RequestRow, steps: Steps) -> list[Span]:
    """Return the spans of a request that has ended, its root first."""
    end = steps.began + int(row.latency_ms * 1e6)
    root = _span(row, "request", "CHAIN", None, steps.began, end, _about(row))
    if row.error and row.error != LEFT:
        root["status"] = {"code": _ERROR, "message": row.error}
    made = [root]
    for name, build in (("retrieval", _retrieval), ("prompt", _prompt), ("generation", _generation)):
        if name in steps.times:
            started, ended = steps.times[name]
            # The generation's end is the request's: how long a client takes to read is not in its times.
            made.append(build(row, steps, root["spanId"], started, end if name == "generation" else min(ended, end)))
    if row.guardrails:
        made.append(_guardrails(row, root["spanId"], end))
    return made


def _about(row: RequestRow) -> dict[str, Any]:
    tags = {
        "mlflow.traceName": f"{SERVICE} {row.kind}",
        "millrace.request_id": row.id,
        "millrace.trace_id": row.trace_id,
        "millrace.release": row.release,
        "millrace.index_version": row.index_version,
        "millrace.outcome": row.error or "answered",
        "millrace.refused": str(row.refused).lower(),
    }
    asked: Any = {"messages": [{"role": "user", "content": row.question}]} if row.kind == "chat" else row.question
    return {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": f"{SERVICE} {row.kind}",
        "error.type": row.error if row.error != LEFT else None,
        "mlflow.spanInputs": json.dumps(asked),
        "mlflow.spanOutputs": None if row.answer is None else json.dumps(row.answer),
        **{f"mlflow.traceTag.{name}": str(value) for name, value in tags.items() if value is not None},
    }


def _retrieval(row: RequestRow, steps: Steps, parent: str, started: int, ended: int) -> Span:
    found = [{"id": hit["chunk_id"], "score": hit["score"]} for hit in row.hits]
    shown = [
        {"id": hit["chunk_id"], "page_content": "", "metadata": {"doc_uri": hit["document_uri"], "score": hit["score"]}}
        for hit in row.hits
    ]
    source = f"index-version-{row.index_version}"
    about = {
        "gen_ai.operation.name": "retrieval",
        "gen_ai.data_source.id": source,
        "gen_ai.retrieval.query.text": row.question,
        "gen_ai.retrieval.documents": json.dumps(found),
        "millrace.best_score": row.best_score,
        "millrace.question_cut": row.question_cut,
        "mlflow.spanInputs": json.dumps({"query": row.question}),
        "mlflow.spanOutputs": json.dumps(shown),
    }
    return _span(row, f"retrieval {source}", "RETRIEVER", parent, started, ended, about)


def _prompt(row: RequestRow, steps: Steps, parent: str, started: int, ended: int) -> Span:
    about: dict[str, Any] = {}
    if steps.built is not None and steps.prompt is not None:
        front, built = steps.prompt.front, steps.built
        about = {
            "gen_ai.prompt.name": front.name,
            "millrace.prompt.version": front.version,
            "millrace.prompt.sha256": steps.prompt.sha256,
            "millrace.prompt.tokens": len(built.token_ids),
            "millrace.prompt.documents": len(built.shown),
            "millrace.prompt.context_tokens": built.context_tokens,
            "millrace.prompt.context_tokens_cut": built.context_tokens_cut,
        }
    return _span(row, "prompt", "TASK", parent, started, ended, about)


def _generation(row: RequestRow, steps: Steps, parent: str, started: int, ended: int) -> Span:
    release = steps.release
    model = release.model_name if release else "unknown"
    first = None if row.first_token_ms is None else row.first_token_ms / 1000
    usage = {"input_tokens": row.prompt_tokens, "output_tokens": row.completion_tokens}
    usage["total_tokens"] = sum(usage.values())
    said = [{"role": "assistant", "parts": [{"type": "text", "content": row.answer}]}]
    about: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "millrace",
        "gen_ai.request.model": model,
        "gen_ai.response.model": f"{model}:{release.model_version}" if release else None,
        "gen_ai.response.id": f"chatcmpl-{row.id.hex}",
        "gen_ai.usage.input_tokens": row.prompt_tokens,
        "gen_ai.usage.output_tokens": row.completion_tokens,
        # Seconds from the request's arrival, retrieval and its wait in line included.
        "gen_ai.response.time_to_first_chunk": first,
        "gen_ai.server.time_to_first_token": first,
        "gen_ai.output.messages": None if row.answer is None else json.dumps(said),
        "millrace.grounded": row.grounded,
        "mlflow.chat.tokenUsage": json.dumps(usage),
        "mlflow.spanOutputs": None if row.answer is None else json.dumps(row.answer),
    }
    if (sampling := steps.sampling) is not None:
        about |= {
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.seed": sampling.seed,
        }
    if (generated := steps.generated) is not None:
        about = {
            **about,
            "gen_ai.response.finish_reasons": [generated.finish_reason],
            "millrace.model_seconds": round(generated.seconds, 6),  # what is left of the span is its wait in line
        }
    return _span(row, f"chat {model}", "CHAT_MODEL", parent, started, ended, about)


def _guardrails(row: RequestRow, parent: str, at: int) -> Span:
    """Return what guardrails did, as a moment at the end: when each acted is not kept."""
    span = _span(row, "guardrails", "GUARDRAIL", parent, at, at, {"mlflow.spanOutputs": json.dumps(row.guardrails)})
    span["events"] = [
        {"timeUnixNano": str(at), "name": "millrace.guardrail", "attributes": _attributes(event)}
        for event in row.guardrails
    ]
    return span


def _span(
    row: RequestRow, name: str, kind: str, parent: str | None, started: int, ended: int, about: Mapping[str, Any]
) -> Span:
    return {
        "traceId": row.id.hex,
        "spanId": secrets.token_hex(8),
        **({"parentSpanId": parent} if parent else {}),
        "name": name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(started),
        "endTimeUnixNano": str(max(started, ended)),
        "attributes": _attributes({"mlflow.spanType": kind, **about}),
        "status": {"code": _OK},
    }


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items() if value is not None]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}
