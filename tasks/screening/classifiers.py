"""What only a model can tell: names of people, toxic passages. Both rules find nothing without a model in the settings.

Reads the model folders that MILLRACE_NAMES_MODEL and MILLRACE_TOXICITY_MODEL name (tasks.models); writes nothing. A
model is loaded once a process, when a text first needs it. Fails with `ModelError` for a folder that holds no such
model, or one none of whose answers the policy names.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tasks.errors import ModelError
from tasks.models import fetch
from tasks.screening.rules import Detector, Find, Models, Rule, Subject
from tasks.storage import Storage

_PASSAGE = re.compile(r"[^\n](?:[^\n]|\n(?!\n)){0,999}")  # a paragraph, or a thousand characters of a long one
_BATCH = 16
_OVERLAP = 32  # tokens two windows share, so that a name at a border is seen whole once


@cache
def _pipeline(task: str, reference: str, cache_dir: Path, s3_endpoint_url: str | None) -> Any:
    """Return the model as a pipeline of transformers. Raises ModelError."""
    import transformers

    storage = Storage(s3_endpoint_url) if reference.startswith("s3://") else None
    folder = str(fetch(reference, cache_dir, storage))
    classes = {
        "token-classification": transformers.AutoModelForTokenClassification,
        "text-classification": transformers.AutoModelForSequenceClassification,
    }
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not any(name.endswith(classes[task].__name__.removeprefix("AutoModel")) for name in config.architectures or ()):
        raise ModelError(
            f"expected a model for {task} in {reference}, found {config.architectures}. Next: name another model, or none."
        )
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, use_fast=True)
    tokenizer.model_max_length = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512))
    model = classes[task].from_pretrained(folder, trust_remote_code=False)
    return transformers.pipeline(task, model=model, tokenizer=tokenizer, device=-1)


def _labels(pipeline: Any, rule: Rule, reference: str) -> set[str]:
    """Return the model's answers that are hits. Raises ModelError when it knows none of them."""
    wanted = {label.casefold() for label in rule.labels}
    known = {str(label).removeprefix("B-").removeprefix("I-") for label in pipeline.model.config.id2label.values()}
    found = {label for label in known if label.casefold() in wanted}
    if not found:
        raise ModelError(
            f"expected {reference} to know one of the labels {sorted(rule.labels)} of the screening policy, found "
            f"{sorted(known)}. Next: correct `labels` in expectations/screening.yaml, or name another model."
        )
    return found


def _names(subject: Subject, rule: Rule, models: Models) -> Iterator[Find]:
    if models.names is None or not subject.text.strip():
        return
    pipeline = _pipeline("token-classification", models.names, models.cache_dir, models.s3_endpoint_url)
    labels = _labels(pipeline, rule, models.names)
    stride = min(_OVERLAP, pipeline.tokenizer.model_max_length // 4)
    for found in pipeline(subject.text, aggregation_strategy="simple", stride=stride):
        if found["entity_group"] in labels and float(found["score"]) >= rule.threshold:
            start, end = int(found["start"]), int(found["end"])
            yield Find(start, end, subject.text[start:end])


def _toxicity(subject: Subject, rule: Rule, models: Models) -> Iterator[Find]:
    if models.toxicity is None or not subject.text.strip():
        return
    pipeline = _pipeline("text-classification", models.toxicity, models.cache_dir, models.s3_endpoint_url)
    labels = _labels(pipeline, rule, models.toxicity)
    passages = list(_PASSAGE.finditer(subject.text))
    # A passage of a thousand characters fits nearly every model; what does not is cut at its end, as the model must.
    answers = pipeline([passage[0] for passage in passages], top_k=None, truncation=True, batch_size=_BATCH)
    for passage, scores in zip(passages, answers, strict=True):
        if any(score["label"] in labels and float(score["score"]) >= rule.threshold for score in scores):
            yield Find(passage.start(), passage.end(), passage[0])


PERSON_NAME = Detector(
    "the name of a person",
    _names,
    packages=("transformers",),
    options=("threshold", "labels"),
    model=lambda models: models.names,
)
TOXICITY = Detector(
    "a toxic passage",
    _toxicity,
    (_PASSAGE.pattern,),
    packages=("transformers",),
    options=("threshold", "labels"),
    model=lambda models: models.toxicity,
)
