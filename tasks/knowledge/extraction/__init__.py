"""Documents of many formats to text with places: `extract` in this process, `Extractor` in a limited child.

Text, Markdown, reStructuredText, HTML, PDF, DOCX, CSV, JSON lines and source code, told by content
(docs/knowledge-sources.md). Reads and writes nothing but its arguments. Fails with `DocumentRefused`, which names the
rule that a document breaks. Add one to EXTRACTOR when the outcome changes: `extractor()` is part of an index version's
fingerprint.
"""

from tasks.knowledge.extraction.formats import EXTRACTOR, extract, extractor
from tasks.knowledge.extraction.limits import Extractor
from tasks.knowledge.extraction.model import DocumentRefused, Extract, Section
from tasks.knowledge.extraction.text import MARKDOWN_HEADING, UNDERLINED_HEADING, title_of

__all__ = [
    "EXTRACTOR",
    "MARKDOWN_HEADING",
    "UNDERLINED_HEADING",
    "DocumentRefused",
    "Extract",
    "Extractor",
    "Section",
    "extract",
    "extractor",
    "title_of",
]
