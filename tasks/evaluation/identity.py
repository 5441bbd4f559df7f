"""What a measurement reads besides its inputs: an earlier one stands only while all of it is the same.

Reads the live release, the index version that serves and how it is searched, the assistant's prompt, the judge's address, and
the sets that the recipe asks for. Writes nothing. Fails with `DataError`, `ReleaseError` or `SettingsError` when one of them is
missing or malformed.
"""

from typing import Any

from tasks.contracts import digest
from tasks.evaluation.judge import endpoint
from tasks.evaluation.sets import choose, written
from tasks.knowledge import index_tables
from tasks.knowledge.corpora import DEFAULT, settings_of
from tasks.release.ledger import ledger, live
from tasks.release.propose import read_prompt
from tasks.serving.prompt import prompt_digest
from tasks.stage import StageContext
from tasks.training.recipes import read_recipe


def identity(context: StageContext) -> dict[str, Any]:
    """Return the names and digests of what is read; the judge's key is none of it."""
    recipe = read_recipe(context.storage, context.input("train", "recipe"))
    with ledger(context.settings) as connection:
        release, version = live(connection), index_tables.current(connection)
    chosen, left_out = choose(context.settings, context.storage, recipe.evaluation, indexed=version is not None)
    judge, own = endpoint(context.settings), settings_of(context.settings, DEFAULT)
    return {
        "champion": [release.release, *release.identity] if release else None,
        "index": [version.version, version.embedder] if version else None,
        "search": [own.search_mode, own.search_ef, own.reranker],
        "prompt": prompt_digest(read_prompt(context.settings)),
        "sets": {name: digest([written(question) for question in rows]) for name, rows in chosen.items()},
        "left_out": left_out,
        "judge": [judge.url, judge.model] if judge else None,
    }
