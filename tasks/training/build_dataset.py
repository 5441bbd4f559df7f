"""Gather training examples from three origins, mix them as the recipe says, and split them by source.

Reads curated examples, accepted feedback on served requests, and the corpus (each only where `data.mix` of the recipe
gives it a weight). Where a teacher is set, it writes the questions and answers of the chosen passages of the corpus;
otherwise they are made from structure alone. Writes `candidates.jsonl`, every row with its provenance. Fails with
`DataError` for a source that cannot be read or split, `CorpusError`, `RecipeError`, and as the teacher does.
"""

from collections import Counter

from tasks.database import connect
from tasks.errors import DataError
from tasks.knowledge import corpora
from tasks.knowledge.erasure import erased
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting
from tasks.training import examples, pairs
from tasks.training.examples import Candidate, Message
from tasks.training.preferences import fitted, usable
from tasks.training.recipes import Recipe, load_recipe
from tasks.training.splits import choose
from tasks.training.teacher import Passage, Teacher


class Options(StageOptions):
    """Where examples come from, and for what."""

    examples: str = from_setting(
        "examples", "docstrings:stdlib, a .jsonl file or a folder of them, or s3://bucket/prefix"
    )
    corpus: str = from_setting("corpus", "A corpus of corpora.yaml, pydoc:topics, a folder, or s3://bucket/prefix")
    recipe: str = from_setting("recipe", "Name of a file in tasks/training/recipes")
    decision: str = ""


def run(context: StageContext, options: Options) -> StageResult:
    """Write the candidates of a dataset, each with its split and provenance."""
    recipe = load_recipe(options.recipe)
    gathered, counts = gather(context, options, recipe)
    found, unusable = usable(gathered, recipe.method)
    if not found:
        raise DataError(
            f"expected examples that method {recipe.method} can learn from, found none among {len(gathered)} {unusable}. "
            "Next: see tasks/training/examples.py for the forms, or change data.mix in the recipe."
        )
    chosen = choose(found, recipe.data)
    teacher = _teacher(context, chosen, recipe)
    if teacher is not None:
        chosen, taught = teach(context, teacher, chosen)
        counts |= taught
    rows = [candidate.row() for candidate in fitted(chosen, recipe)]
    per_side = Counter(f"{candidate.origin}_{candidate.split}" for candidate in chosen)
    sides = ("train", "validation", "held_out") if recipe.data.validation_rows else ("train", "held_out")
    sources = {f"sources_{side}": len({c.source for c in chosen if c.split == side}) for side in sides}
    return StageResult(
        outputs={"candidates": context.storage.put_rows(f"{context.folder}/candidates.jsonl", rows)},
        counts={"available": len(found), "rows": len(rows), **sources, "feedback_train": 0, **unusable, **counts}
        | per_side,
        facts={
            "examples": options.examples,
            "corpus": options.corpus,
            "recipe": options.recipe,
            "decision": options.decision,
            "teacher": teacher.model if teacher else None,
        },
    )


def gather(context: StageContext, options: Options, recipe: Recipe) -> tuple[list[Candidate], dict[str, int]]:
    """Return the candidates of every origin that the mix asks for, and counts of how the corpus was read."""
    found: list[Candidate] = []
    counts: dict[str, int] = {}
    mix = recipe.data.mix
    if mix.feedback and recipe.method != "pretrain":
        with connect(context.settings.database_url.get_secret_value(), vectors=False) as connection:
            found += examples.feedback(connection)
    if mix.curated:
        found += examples.read(options.examples, context.storage)
    if mix.corpus:
        with connect(context.settings.database_url.get_secret_value(), vectors=False) as connection:
            gone = erased(connection, corpora.name_of(context.settings, options.corpus))
        source = corpora.source_of(context.settings, options.corpus)
        made, counts = pairs.from_corpus(source, context.storage, recipe, gone)
        found += made
    return found, counts


def teach(context: StageContext, teacher: Teacher, chosen: list[Candidate]) -> tuple[list[Candidate], dict[str, int]]:
    """Return the candidates with those of the corpus as the teacher worded them, and what became of the questions."""
    asked = [candidate for candidate in chosen if candidate.origin == "corpus"]
    passages = [Passage(_title(candidate), _passage(candidate), candidate.source) for candidate in asked]
    answers = teacher.ask(passages, lambda done, total: context.progress(done, total, "passages"))
    worded = dict(zip((candidate.id for candidate in asked), answers, strict=True))
    kept: list[Candidate] = []
    for candidate in chosen:
        taught = worded.get(candidate.id)
        if taught is not None:
            messages = [Message(role="user", content=taught.question), Message(role="assistant", content=taught.answer)]
            provenance = candidate.provenance | {"made_by": f"teacher:{teacher.model}"}
            candidate = candidate.model_copy(update={"messages": messages, "provenance": provenance})
        if candidate.id not in worded or taught is not None:
            kept.append(candidate)
    return kept, dict(teacher.counts)


def _teacher(context: StageContext, chosen: list[Candidate], recipe: Recipe) -> Teacher | None:
    settings = context.settings
    wanted = recipe.method != "pretrain" and any(candidate.origin == "corpus" for candidate in chosen)
    return Teacher(settings, context.storage) if wanted and (settings.teacher_url or settings.teacher_model) else None


def _title(candidate: Candidate) -> str:
    return str(candidate.provenance["section"])


def _passage(candidate: Candidate) -> str:
    assert candidate.messages is not None
    return candidate.messages[-1].content


STAGE = Stage("build_dataset", Options, run)
