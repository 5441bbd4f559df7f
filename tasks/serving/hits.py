"""A hit of the index as the assistant tells it: cited in an answer, and kept with the request.

Reads and writes nothing. Both hold document, place, score and its parts, and the index version; the text is in the
answer only: what is kept names the chunk.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.knowledge.search import Hit


def cited(hit: "Hit") -> dict[str, Any]:
    """Return a hit as an answer cites it."""
    return {
        "uri": hit.document_uri,
        "title": hit.title,
        "score": round(float(hit.score), 4),
        "chunk_id": hit.chunk_id,
        **_place(hit),
        "text": hit.text,
    }


def kept(hit: "Hit") -> dict[str, Any]:
    """Return a hit as table `requests` keeps it."""
    return {"chunk_id": hit.chunk_id, "document_uri": hit.document_uri, "score": float(hit.score), **_place(hit)}


def _place(hit: "Hit") -> dict[str, Any]:
    """Return where a hit stands in its document, and how it came to its place among the hits."""
    return {
        "ordinal": hit.ordinal,
        "start": hit.start,
        "end": hit.end,
        "headings": list(hit.headings),
        "page": hit.page,
        "last_page": hit.last_page,
        "parts": dict(hit.parts),
        "index_version": hit.index_version,
    }
