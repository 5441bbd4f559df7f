"""The answers of a model to the frozen sets, written as the assistant writes them.

Reads the index version that serves (golden questions are searched once, and every model is shown the same hits), and a model
in memory as `scores.switched` gives it. The prompt is the assistant's, filled by the assistant's own code; the most likely
token is always taken. Writes nothing but the cache of embeddings. Fails with `QuestionTooLong` when a question does not fit
the model's window, and as the search does.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from tasks.evaluation.sets import Question
from tasks.knowledge.cache import EmbeddingCache, text_sha256
from tasks.knowledge.index_tables import Version
from tasks.knowledge.measure import asking
from tasks.release.ledger import ledger
from tasks.serving.hits import cited
from tasks.serving.language_model import ends_of, window_of
from tasks.serving.prompt import Prompt
from tasks.serving.prompting import BuiltPrompt, build_prompt

if TYPE_CHECKING:
    from tasks.serving.releases import Loaded


@dataclass(frozen=True)
class Answer:
    """What a model answered to one question, from which texts, and what it took.

    `shown` is what stood in its prompt, titles too: of a document that was cut, no word more than the model could read.
    `seconds` is the time from the beginning of its batch to its own last token: all models answer the same batches.
    """

    question: Question
    text: str
    shown: tuple[str, ...]
    prompt_tokens: int
    context_tokens_cut: int
    new_tokens: int
    seconds: float


@dataclass(frozen=True)
class _Model:
    tokenizer: Any
    window: int


@dataclass(frozen=True)
class _Asked:
    """What `build_prompt` reads of a loaded release."""

    model: _Model
    prompt: Prompt


def with_hits(cache: EmbeddingCache, version: Version, questions: Sequence[Question], documents: int) -> list[Question]:
    """Return the questions, the golden ones with what the index finds for them, as the assistant searches."""
    golden = [question for question in questions if question.set == "golden"]
    vectors = cache.vectors((question.question for question in golden), kind="query").by_sha256
    how = asking(cache.settings)
    from tasks.knowledge.search import search

    with ledger(cache.settings) as connection:
        found = {
            question.id: search(
                connection,
                version.version,
                vectors[text_sha256(question.question)],
                documents,
                text=question.question,
                mode=how.mode,
                ef=how.ef,
                reranker=how.reranker,
            )
            for question in golden
        }
    return [replace(q, hits=found[q.id]) if q.set == "golden" else q for q in questions]


def hit_rows(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Return what was found for each golden question, as it is kept."""
    return [{"id": q.id, "hits": [cited(hit) for hit in q.hits]} for q in questions if q.set == "golden"]


def answer(
    model: Any, tokenizer: Any, prompt: Prompt, questions: Sequence[Question], max_tokens: int, rows_per_batch: int
) -> list[Answer]:
    """Return a model's answers, in the order of the questions. Raises QuestionTooLong."""
    asked = cast("Loaded", _Asked(_Model(tokenizer, window_of(model.config, tokenizer)), prompt))
    built = [build_prompt(asked, [{"role": "user", "content": q.question}], q.hits, max_tokens) for q in questions]
    # Prompts of like length together, so that little is padded: the same batches for every model with this tokenizer.
    order = sorted(range(len(built)), key=lambda place: (len(built[place].token_ids), questions[place].id))
    found: dict[int, Answer] = {}
    for start in range(0, len(order), rows_per_batch):
        batch = order[start : start + rows_per_batch]
        prompts = [built[place].token_ids for place in batch]
        made = generate(model, tokenizer, prompts, max_tokens, prompt.front.repetition_penalty)
        for place, (tokens, seconds) in zip(batch, made, strict=True):
            text = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
            found[place] = _answer(questions[place], built[place], text, len(tokens), seconds)
    return [found[place] for place in range(len(built))]


def _answer(question: Question, built: BuiltPrompt, text: str, new_tokens: int, seconds: float) -> Answer:
    shown = (built.context,) if built.context else ()
    return Answer(question, text, shown, len(built.token_ids), built.context_tokens_cut, new_tokens, seconds)


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_tokens: int, repetition_penalty: float
) -> list[tuple[list[int], float]]:
    """Return for each prompt the tokens of its most likely answer, its end included, and when the last of them was made."""
    import torch

    ends = ends_of(model.generation_config, tokenizer)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    width = max(map(len, prompts))
    # On the left: what a model continues must be the end of the prompt.
    ids = torch.tensor([[fill] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    choice: dict[str, Any] = {}
    if repetition_penalty > 1:
        from transformers import RepetitionPenaltyLogitsProcessor

        choice["logits_processor"] = [RepetitionPenaltyLogitsProcessor(repetition_penalty, prompt_ignore_length=width)]
    times: list[float] = []

    def look(ids: Any, _scores: Any, **_: Any) -> Any:
        times.append(time.monotonic())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    started = time.monotonic()
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, use_cache=True, do_sample=False,
            temperature=None, top_p=None, top_k=None, eos_token_id=ends or None, pad_token_id=fill,
            stopping_criteria=[look], **choice,
        )  # fmt: skip
    made = []
    for row in output[:, width:].tolist():
        size = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        made.append((row[:size], times[size - 1] - started))
    return made
