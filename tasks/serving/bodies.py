"""The bodies of the assistant's answers: OpenAI's fields, and Millrace's beside them. Reads and writes nothing."""

from typing import Any

from tasks.release.ledger import Release
from tasks.serving.answering import Answered, Searched
from tasks.serving.hits import cited
from tasks.serving.language_model import Generated
from tasks.serving.request_log import RequestRow


def model_entry(name: str, release: Release) -> dict[str, Any]:
    """Return an entry of /v1/models."""
    return {
        "id": name,
        "object": "model",
        "created": int(release.created_at.timestamp()),
        "owned_by": "millrace",
        "millrace": {
            "release": release.release,
            "model_version": release.model_version,
            "base_model": release.base_model,
            "index_version": release.index_version,
            "prompt_sha256": release.prompt_sha256,
        },
    }


def completion(answered: Answered) -> dict[str, Any]:
    """Return OpenAI's chat completion, with the documents and counts of Millrace."""
    generated = answered.generated
    message = {"role": "assistant", "content": generated.text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": generated.finish_reason}
    return about(answered.row, answered.loaded.release, "chat.completion") | {
        "choices": [choice],
        "usage": usage(generated),
        "request_id": str(answered.row.id),
        "documents": [cited(hit) for hit in answered.built.shown],
        "millrace": told(answered),
    }


def about(row: RequestRow, release: Release, kind: str) -> dict[str, Any]:
    """Return what a completion and each of its chunks say of themselves."""
    return {
        "id": f"chatcmpl-{row.id.hex}",
        "object": kind,
        "created": int(row.created_at.timestamp()),
        "model": release.model_name,
        "system_fingerprint": f"release-{release.release}",
    }


def usage(generated: Generated) -> dict[str, int]:
    """Return OpenAI's counts of tokens."""
    return {
        "prompt_tokens": generated.prompt_tokens,
        "completion_tokens": generated.completion_tokens,
        "total_tokens": generated.prompt_tokens + generated.completion_tokens,
    }


def told(answered: Answered) -> dict[str, Any]:
    """Return what Millrace says of an answer: what it was made from, and what was cut."""
    row, release, built = answered.row, answered.loaded.release, answered.built
    return {
        "release": release.release,
        "model_version": release.model_version,
        "index_version": release.index_version,
        "context_tokens": built.context_tokens,
        "context_tokens_cut": built.context_tokens_cut,
        "documents_left_out": len(row.hits) - len(built.shown),
        "documents_with_instructions": sum(event["action"] == "left_out" for event in row.guardrails),
        "guardrails": row.guardrails,
        "refused": row.refused,
        "question_cut_for_lookup": row.question_cut,
        "seconds": round(row.latency_ms / 1000, 3),
    }


def search_result(searched: Searched) -> dict[str, Any]:
    """Return what a search found."""
    row = searched.row
    return {
        "object": "search.result",
        "id": str(row.id),
        "request_id": str(row.id),
        "data": [cited(hit) for hit in searched.hits],
        "millrace": {
            "release": row.release,
            "index_version": row.index_version,
            "question_cut_for_lookup": row.question_cut,
            "guardrails": row.guardrails,
            "ms": round(row.latency_ms, 2),
        },
    }
