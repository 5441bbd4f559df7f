"""`python -m tasks search "QUESTION"`: what a question finds, with where it stands and how it came to its place.

Reads the current index version of the corpus (without --corpus: the one that MILLRACE_CORPUS names) or another version, loads its
embedder, and the reranker of that version's corpus where there is one. Writes to stdout.
Fails with `OptionError` for a wrong option, with `DataError` when there is no such version.
"""

from collections.abc import Mapping

from tasks.database import connect
from tasks.errors import OptionError
from tasks.knowledge import index_tables
from tasks.knowledge.index_tables import Version
from tasks.knowledge.search.filters import Filters
from tasks.knowledge.search.find import MODES, Hit, search
from tasks.options import parse_options

USAGE = (
    'python -m tasks search "QUESTION" [--k N] [--version N] [--corpus NAME] [--mode vector|text|hybrid] '
    "[--prefix URI] [--metadata key=value[,key=value]] [--heading TEXT] [--pages FIRST-LAST]"
)
_OPTIONS = ("k", "version", "corpus", "mode", "prefix", "metadata", "heading", "pages")
_SHOWN = 300


def main(arguments: list[str]) -> int:
    """Print what a question finds; return the exit code."""
    from tasks.knowledge.corpora import load_corpora, name_of, settings_of
    from tasks.knowledge.embedders import load_embedder
    from tasks.knowledge.reranker import load_reranker
    from tasks.settings import settings

    if not arguments or arguments[0].startswith("--"):
        raise OptionError(f"expected a question, found {' '.join(arguments) or 'nothing'}. Next: {USAGE}")
    question, options = arguments[0], parse_options(arguments[1:])
    require_known(options)
    chosen = settings()
    corpus = name_of(chosen, options.get("corpus") or chosen.corpus)
    with connect() as connection:
        version = int(options["version"]) if "version" in options else None
        found = index_tables.get(connection, version, corpus)
        # A version may outlive its corpus' entry in the file.
        configured = settings_of(chosen, found.corpus if found.corpus in load_corpora(chosen.corpora) else None)
        hits = search(
            connection,
            found.version,
            load_embedder(configured, found.embedder).encode([question], "query")[0],
            int(options.get("k", "5")),
            text=question,
            mode=options.get("mode", configured.search_mode),  # type: ignore[arg-type]  # require_known has seen it
            where=filters_of(options),
            ef=configured.search_ef,
            reranker=load_reranker(configured) if configured.reranker else None,
        )
    print(shown(found, hits))
    return 0


def require_known(options: Mapping[str, str]) -> None:
    """Refuse options that `search` does not have, or values of a wrong form. Raises OptionError."""
    numbers = {name: options[name] for name in ("k", "version") if name in options}
    wrong = [f"--{name}" for name in options if name not in _OPTIONS]
    wrong += [f"--{name} {value}" for name, value in numbers.items() if not value.isdecimal() or int(value) < 1]
    if options.get("mode", MODES[0]) not in MODES:
        wrong.append(f"--mode {options['mode']}")
    if wrong:
        raise OptionError(f"expected the options of search, found {', '.join(wrong)}. Next: {USAGE}")


def filters_of(options: Mapping[str, str]) -> Filters:
    """Return what the search is narrowed to. Raises OptionError."""
    metadata: dict[str, str] = {}
    for pair in options["metadata"].split(",") if "metadata" in options else []:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise OptionError(f"expected --metadata key=value, found {pair!r}. Next: {USAGE}")
        metadata[key] = value
    first, dash, last = options.get("pages", "").partition("-")
    if not all(part.isdecimal() for part in (first, last) if part) or (dash and not first and not last):
        raise OptionError(f"expected --pages FIRST-LAST, 3 or 3-, found {options['pages']!r}. Next: {USAGE}")
    return Filters(
        prefix=options.get("prefix"),
        metadata=metadata,
        heading=options.get("heading"),
        first_page=int(first) if first else None,
        last_page=int(last) if last else (int(first) if first and not dash else None),
    )


def shown(version: Version, hits: list[Hit]) -> str:
    """Return the hits as a person reads them."""
    lines = [
        f"index version {version.version} of {version.corpus}: {version.documents} documents, {version.chunks} chunks, "
        f"{version.embedder}"
    ]
    for place, hit in enumerate(hits, start=1):
        where = [hit.title, f"chunk {hit.ordinal}", f"characters {hit.start} to {hit.end}"]
        pages = f"page {hit.page}" if hit.page == hit.last_page else f"pages {hit.page} to {hit.last_page}"
        where += [pages] if hit.page is not None else []
        where += [" > ".join(hit.headings)] if hit.headings else []
        parts = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in hit.parts.items())
        lines += [
            f"{place}. {hit.score:.3f}  {hit.document_uri}  ({', '.join(where)})",
            f"   [{parts}]",
            f"   {' '.join(hit.text.split())[:_SHOWN]}",
        ]
    return "\n".join(lines if hits else [*lines, "nothing matches"])
