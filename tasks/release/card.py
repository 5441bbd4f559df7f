"""The model card: facts as Markdown, for whoever has to decide whether to use these weights.

Pure: its argument is `tasks.release.card_facts.CardFacts`; reads and writes nothing. What was not written down is `unknown`, and
what was not measured is said to be not measured; nothing is guessed. All that comes from data goes through
`tasks.release.card_text.code`. docs/model-card.md says where each fact comes from.
"""

from collections.abc import Mapping
from typing import Any

from tasks.release import card_measures
from tasks.release.card_facts import CardFacts
from tasks.release.card_text import NOT_MEASURED, UNKNOWN, code, interval, number, table

_METHODS = {
    "sft": "supervised fine-tuning on questions and answers",
    "dpo": "preference optimisation on better and worse answers",
    "pretrain": "continued pre-training on texts",
}
_ORIGINS = ("curated", "docstrings", "feedback", "corpus")
_SIDES = ("train", "validation", "held_out")


def markdown(facts: CardFacts) -> str:
    """Return the whole card."""
    sections = {
        "Intended use": _use(facts),
        "Out of scope": _out_of_scope(facts),
        "Training data": _data(facts),
        "Metrics": card_measures.metrics(facts),
        "Safety": card_measures.safety(facts),
        "Limits": _limits(facts),
        "Lineage": _lineage(facts),
        "Energy and cost": _cost(facts),
    }
    lines = [f"# Model card: {code(facts.name)} version {code(facts.version)}", "", _summary(facts), ""]
    for title, content in sections.items():
        lines += [f"## {title}", "", *content, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def description(facts: CardFacts, card: str) -> str:
    """Return the short form, which MLflow shows with the version; `card` is where the whole is kept."""
    evaluate, gate = facts.evidence.evaluate, facts.evidence.gate
    return "\n\n".join(
        [
            _summary(facts),
            f"Dataset {code(facts.evidence.validate_dataset.facts.get('dataset_sha256'))}, code "
            f"{code(facts.evidence.train.code_revision)}, evidence {code(gate.uri)}.",
            f"Held-out loss {interval(evaluate.metrics, 'candidate_loss')} on {number(evaluate.facts.get('rows'), ',.0f')} rows; "
            f"difference {interval(evaluate.metrics, 'difference', '+.3f')}. Verdict {code(gate.facts.get('verdict'))}.",
            f"Model card: {code(card)}",
        ]
    )


def _summary(facts: CardFacts) -> str:
    train = facts.evidence.train.facts
    kind = "A LoRA adapter of" if facts.evidence.weights.kind == "adapter" else "A whole model, trained from"
    return f"{kind} {code(train.get('base_model'))} (revision {code(train.get('base_revision'))}), recipe {code(train.get('recipe'))}."


def _use(facts: CardFacts) -> list[str]:
    built = _facts(facts, "build_dataset")
    method = _METHODS.get(str(facts.recipe.get("method")), UNKNOWN)
    return [
        "Answering questions in the assistant of this installation: with its retrieval, its prompt and its guardrails, "
        "once it is released. That is what the figures below were measured for.",
        "",
        f"- corpus it answers about: {code(built.get('corpus'))}",
        f"- trained by: {method} ({code(facts.recipe.get('description'))})",
        f"- system prompt of the training rows: {_system_prompt(facts.part('data'))}",
    ]


def _system_prompt(data: Mapping[str, Any]) -> str:
    return "none" if data.get("system_prompt") == "" else code(data.get("system_prompt"))


def _out_of_scope(facts: CardFacts) -> list[str]:
    lines = [
        "- Use without the assistant: the weights alone know no source for what they say.",
        "- Subjects and languages that are not among the training data and held-out rows below: nothing was measured there.",
        "- Decisions about people, and advice on which health, money or rights depend: no measure below is about that.",
    ]
    if missing := card_measures.unmeasured_sets(facts):
        lines.append(f"- Use that rests on what these sets would show, which were not evaluated: {', '.join(missing)}.")
    return lines


def _data(facts: CardFacts) -> list[str]:
    frozen, built = facts.evidence.validate_dataset, _facts(facts, "build_dataset")
    sides = ", ".join(f"{_count(frozen.counts, side)} {side.replace('_', '-')}" for side in _SIDES)
    origins = [name for name in _ORIGINS if f"{name}_train" in frozen.counts]
    where = {"curated": built.get("examples"), "docstrings": built.get("examples"), "corpus": built.get("corpus")}
    where["feedback"] = "accepted feedback on requests served here"
    rows = [
        [name, _count(frozen.counts, f"{name}_train"), code(where[name]), code(facts.licences.get(name))]
        for name in origins
    ]
    rejected, masked = frozen.facts.get("quarantined_by_rule"), frozen.facts.get("redacted_by_rule")
    lines = [f"Dataset {code(frozen.facts.get('dataset_sha256'))}. Rows: {sides}.", ""]
    lines += table(["origin", "training rows", "from", "licence"], rows or [[UNKNOWN] * 4])
    return [
        *lines,
        f"- questions worded by a teacher model: {_teacher(built)}",
        f"- rejected before training: {_count(frozen.counts, 'quarantined')} rows{_by_rule(rejected)}",
        f"- personal data and credentials masked: {_count(frozen.counts, 'redacted')}{_by_rule(masked)}",
        f"- licence of the base model: {UNKNOWN} (no stage records it)",
    ]


def _teacher(built: Mapping[str, Any]) -> str:
    if "teacher" not in built:
        return UNKNOWN
    return code(built["teacher"]) if built["teacher"] else "none"


def _limits(facts: CardFacts) -> list[str]:
    evaluate, plan = facts.evidence.evaluate, facts.stages.get("plan_training")
    lines = [
        f"- The interval of the loss rests on {number(evaluate.facts.get('rows'), ',.0f')} held-out rows of the sources above; "
        "rows of other sources may be answered worse.",
        f"- Compared with {_compared(facts)}, on the same rows.",
    ]
    origins = [name for name in _ORIGINS if facts.evidence.validate_dataset.counts.get(f"{name}_train")]
    if unknown := [name for name in origins if name not in facts.licences]:
        lines.append(f"- The licence of training rows is unknown for: {', '.join(unknown)}.")
    if not origins:
        lines.append("- Where the training rows come from is unknown.")
    if plan is not None and plan.counts.get("truncated"):
        cut, most = _count(plan.counts, "truncated"), number(facts.part("data").get("max_tokens"), ",.0f")
        lines.append(f"- {cut} training rows were cut at {most} tokens: what stood after that was not learned.")
    return [*lines, *card_measures.limits(facts)]


def _compared(facts: CardFacts) -> str:
    release = facts.evidence.evaluate.facts.get("champion_release")
    return (
        "the base model only: no model was live" if release is None else f"the base model and release {code(release)}"
    )


def _lineage(facts: CardFacts) -> list[str]:
    train, weights = facts.evidence.train, facts.evidence.weights
    start = train.options.get("adapter")
    rows = {
        "dataset": facts.evidence.validate_dataset.facts.get("dataset_sha256"),
        "base model": train.facts.get("base_model"),
        "base revision": train.facts.get("base_revision"),
        "started from the adapter": (start.value or "none") if start is not None else None,
        "recipe": train.facts.get("recipe"),
        "code revision of the training": train.code_revision,
        "code revision of this card": facts.code_revision,
        "image of the training": train.image_digest,
        "seed": facts.part("optimisation").get("seed"),
        "training fingerprint": train.facts.get("training_fingerprint"),
        f"{weights.kind} sha256": weights.sha256,
        f"{weights.kind} at": weights.uri,
        "MLflow run": train.facts.get("mlflow_run_id"),
        "held-out rows sha256": facts.evidence.evaluate.facts.get("held_out_sha256"),
        "verdict sha256": facts.evidence.gate_sha256,
        **{f"manifest of {name}": manifest.uri for name, manifest in facts.stages.items()},
    }
    return table(["what", "which"], [[name, code(value)] for name, value in rows.items()])


def _cost(facts: CardFacts) -> list[str]:
    spent = {name: manifest.resource_seconds for name, manifest in facts.stages.items()}
    kinds = ("wall", "cpu", "gpu")
    rows = [[name, *(number(found.get(kind), ",.1f") for kind in kinds)] for name, found in spent.items()]
    hours = sum(found.get("gpu", 0.0) for found in spent.values()) / 3600
    price = facts.gpu_hour_price
    cost = (
        f"{UNKNOWN} (MILLRACE_GPU_HOUR_PRICE is not set)"
        if price is None
        else f"{hours * price:,.2f} at {price:,.2f} a GPU hour"
    )
    plan = facts.stages.get("plan_training")
    lines = table(["stage", "seconds", "CPU seconds", "GPU seconds"], rows)
    lines += [f"- GPU hours: {hours:,.3f}; their cost: {cost}", _energy(facts)]
    if plan is not None:
        lines.append(f"- estimated before the training: {number(plan.metrics.get('gpu_hours'), ',.3f')} GPU hours")
    if facts.evidence.train.facts.get("reused") is True:
        lines.append(
            "- These weights were trained by an earlier run of the same inputs: its seconds are not among these."
        )
    return [*lines, *_tries(facts, spent)]


def _energy(facts: CardFacts) -> str:
    found = {name: manifest.metrics.get("gpu_energy_joules") for name, manifest in facts.stages.items()}
    measured = {name: joules / 3.6e6 for name, joules in found.items() if joules is not None}
    if not measured:
        return f"- energy: {NOT_MEASURED} (no GPU told its power)"
    parts = ", ".join(f"{name} {hours:,.4f}" for name, hours in measured.items())
    return f"- energy of the GPUs, as they told their power: {sum(measured.values()):,.4f} kWh ({parts})"


def _tries(facts: CardFacts, spent: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Say what the tries cost that are not in the table: those that failed, were preempted, or were killed."""
    if facts.tries is None:
        return [
            "- Counted are the tries that ended the stages; of those that failed or were preempted nothing is known."
        ]
    lines = []
    for name, lost in facts.tries.items():
        wall, gpu = (spent.get(name, {}).get(kind, 0.0) for kind in ("wall", "gpu"))
        gpus = f", {lost.seconds * gpu / wall:,.1f} GPU seconds if on as many GPUs" if gpu and wall else ""
        killed = f"; {lost.killed} more never told their end, and nobody knows their seconds" if lost.killed else ""
        lines.append(
            f"- {name}, not in the table: {lost.failed} failed tries, {lost.seconds:,.1f} seconds{gpus}{killed}"
        )
    return lines or ["- No try of these stages failed or was preempted."]


def _facts(facts: CardFacts, stage: str) -> Mapping[str, Any]:
    manifest = facts.stages.get(stage)
    return manifest.facts if manifest is not None else {}


def _count(counts: Mapping[str, int], name: str) -> str:
    return f"{counts[name]:,}" if name in counts else UNKNOWN


def _by_rule(found: Any) -> str:
    if not isinstance(found, Mapping) or not found:
        return ""
    return " (" + ", ".join(f"{code(rule)} {code(count)}" for rule, count in found.items()) + ")"
