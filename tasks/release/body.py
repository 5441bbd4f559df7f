"""What a person reads before approving a release: a Markdown text, made from a proposal.

Pure: reads and writes nothing. Airflow shows the text in its approval form, and `announce` repeats it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tasks.contracts import Manifest
from tasks.knowledge.index_tables import Version
from tasks.release import judged, prompt_change
from tasks.release.change import Change, short
from tasks.release.evidence import Evidence
from tasks.release.ledger import Release
from tasks.serving.prompt import prompt_digest

_SHORT = 12
_RETRIEVAL = (("recall@5", "recall_at_5"), ("nDCG@10", "ndcg_at_10"), ("MRR", "mrr"), ("ANN recall", "ann_recall"))


@dataclass(frozen=True)
class Proposal:
    """What would be live after the release, beside what is live now."""

    live: Release | None
    index: Version
    register: Manifest | None
    evidence: Evidence | None
    prompt: str
    change: Change
    earlier: Release | None
    """The newest release that had these very weights, when there was one: it was replaced or rolled back."""
    shadow: str = ""
    """What its shadow answers to live questions say, in one line; of a model only."""
    verdict: Mapping[str, Any] = field(default_factory=dict)
    """What the gate wrote of its verdict (`tasks.release.judged`); of a model only."""

    @property
    def kind(self) -> Literal["model", "index"]:
        """What changes: the model (with the index), or only the index (and the prompt)."""
        return "model" if self.register is not None else "index"

    @property
    def subject(self) -> str:
        """One line: what the release is."""
        if self.register is not None:
            facts = self.register.facts
            word = f" (verdict: {self.word})" if self.word != "promote" else ""
            return f"Release {facts['model_name']} version {facts['model_version']} with index version {self.index.version}{word}"
        return f"Release index version {self.index.version}" + (
            " and a new prompt" if self.change.prompt_changed else ""
        )

    @property
    def word(self) -> str:
        """The gate's verdict; empty where the model stays."""
        return str(self.evidence.gate.facts["verdict"]) if self.evidence else ""


def markdown(proposal: Proposal, mlflow_uri: str, terms: str = "") -> str:
    """Return the text for the approval form; `terms` says who may answer, and until when."""
    live = proposal.live
    lines = [f"**{proposal.subject}.** " + _against(live), ""]
    if proposal.change.doubts:
        lines += [
            "**A person decides, whatever the settings say:**",
            "",
            *(f"- {one}" for one in proposal.change.doubts),
            "",
        ]
    if proposal.earlier is not None:
        lines += [_seen_before(proposal.earlier), ""]
    lines += [
        f"| | live (release {live.release}) | proposed |" if live else "| | live (none) | proposed |",
        "| --- | --- | --- |",
        *(f"| {name} | {before} | {after} |" for name, before, after in _rows(proposal)),
    ]
    if live is not None and (said := prompt_change.told(live.prompt, proposal.prompt)):
        lines += ["", *said]
    if proposal.evidence is not None:
        lines += ["", *_losses(proposal.evidence)]
        if table := judged.table(proposal.verdict):
            lines += ["", "What was judged, against the live model (the base where none is live):", "", *table]
    if proposal.shadow:
        lines += ["", proposal.shadow]
    lines += ["", *_retrieval(proposal.index), "", *_links(proposal, mlflow_uri)]
    if terms:
        lines += ["", terms]
    return "\n".join(lines) + "\n"


def _against(live: Release | None) -> str:
    if live is None:
        return "It would be the first release."
    return f"Live is release {live.release} of {live.created_at:%Y-%m-%d %H:%M} UTC, approved by {live.approved_by}."


def _seen_before(earlier: Release) -> str:
    return (
        f"**Note:** this {'model' if earlier.adapter_sha256 is None else 'adapter'} was live before, in release "
        f"{earlier.release} ({earlier.kind}: {short(earlier.reason) or 'no reason given'}). It was replaced or rolled back since."
    )


def _rows(proposal: Proposal) -> list[tuple[str, str, str]]:
    live, index = proposal.live, proposal.index
    facts: dict[str, Any] = proposal.register.facts if proposal.register else {}
    old = {
        "model": f"{live.model_name} {live.model_version}" if live else "",
        "base": f"{live.base_model} {live.base_revision[:_SHORT]}" if live else "",
        "adapter": _adapter(live.adapter_sha256) if live else "",
        "dataset": (live.dataset_sha256 or "")[:_SHORT] if live else "",
    }
    new = old
    if facts:
        new = {
            "model": f"{facts['model_name']} {facts['model_version']}",
            "base": f"{facts['base_model']} {facts['base_revision'][:_SHORT]}",
            "adapter": _adapter(facts["adapter_sha256"]),
            "dataset": facts["dataset_sha256"][:_SHORT],
        }
    prompt = prompt_digest(proposal.prompt)
    pairs = [
        ("model version", old["model"], new["model"]),
        ("base model", old["base"], new["base"]),
        ("adapter", old["adapter"], new["adapter"]),
        ("training data", old["dataset"], new["dataset"]),
        ("prompt", live.prompt_sha256[:_SHORT] if live else "", prompt[:_SHORT]),
        ("index version", str(live.index_version) if live else "", str(index.version)),
    ]
    return [
        (name, before or "-", (after or "-") + (" (same)" if before == after else "")) for name, before, after in pairs
    ]


def _adapter(sha256: str | None) -> str:
    return sha256[:_SHORT] if sha256 else "none (whole model)"


def _losses(evidence: Evidence) -> list[str]:
    metrics, facts = evidence.evaluate.metrics, evidence.evaluate.facts
    champion = facts.get("champion_release")
    lines = [
        f"Loss on {facts.get('rows', '?')} held-out rows, measured on the same rows now (lower is better, 95 % interval):",
        "",
        "| base model | live model | candidate | difference |",
        "| --- | --- | --- | --- |",
        "| "
        + " | ".join(
            [
                _interval(metrics, "base_loss"),
                _interval(metrics, "champion_loss") if champion is not None else "none yet",
                _interval(metrics, "candidate_loss"),
                _interval(metrics, "difference"),
            ]
        )
        + " |",
        "",
        f"Verdict: **{evidence.gate.facts['verdict']}**. {evidence.gate.facts.get('reason') or ''}",
    ]
    steps, rows = evidence.train.counts.get("steps"), evidence.train.counts.get("rows")
    facts = evidence.train.facts
    whole = f", all weights of {facts['base_model']}" if facts.get("weights") == "model" else ""
    lines.append(f"Trained with recipe `{facts.get('recipe')}`{whole}: {steps} steps over {rows} rows.")
    return lines


def _retrieval(index: Version) -> list[str]:
    figures = ", ".join(f"{name} {float(index.metrics[key]):.3f}" for name, key in _RETRIEVAL if key in index.metrics)
    questions = index.metrics.get("questions")
    on = f" on {int(questions)} golden questions" if questions is not None else ""
    return [
        f"Index version {index.version}: {index.documents} documents, {index.chunks} chunks of `{index.corpus}`; "
        f"{figures or 'retrieval not measured'}{on}."
    ]


def _links(proposal: Proposal, mlflow_uri: str) -> list[str]:
    if proposal.register is None or proposal.evidence is None:
        return [f"Manifest of the index: run `{proposal.index.run}`."]
    facts = proposal.register.facts
    version = f"{mlflow_uri.rstrip('/')}/#/models/{facts['model_name']}/versions/{facts['model_version']}"
    lines = [f"[Training run in MLflow]({facts['mlflow_url']}) - [model version]({version})", ""]
    evidence, register = proposal.evidence, proposal.register
    lines += [f"- verdict: `{evidence.gate.uri}`"]
    named = (
        ("measurements", evidence.evaluate.outputs.get("report")),
        ("each row's scores", evidence.evaluate.outputs.get("scores")),
        ("model card", register.outputs.get("card.html")),
    )
    return lines + [f"- {name}: `{artifact.uri}`" for name, artifact in named if artifact]


def _interval(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return "not measured"
    text = f"{metrics[name]:.3f}"
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return f"{text} [{low:.3f}, {high:.3f}]" if low is not None and high is not None else text
