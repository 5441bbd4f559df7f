"""The summary of the loop, in one screen. Every figure comes from `Findings`; what was not found is said so."""

import textwrap
from typing import Any

from local.loop import Findings

WIDTH = 100


def render(findings: Findings, places: dict[str, str], seconds: float) -> str:
    """Return the summary as text."""
    sections = [
        ("Knowledge", _knowledge(findings)),
        ("Fine-tuning", _training(findings)),
        ("Release", _release(findings)),
        ("Questions", _answers(findings)),
        ("Drift", _drift(findings)),
        ("Where to look", [f"{name:<10} {place}" for name, place in places.items()]),
    ]
    lines = [f"Millrace demo: the whole loop in {seconds / 60:.1f} minutes"]
    for title, body in sections:
        lines += ["", title, *("  " + line for line in body)]
    return "\n".join(lines)


def _knowledge(findings: Findings) -> list[str]:
    stages = findings.references["knowledge"]
    listed, valid, checked = (stages[name] for name in ("list_documents", "validate_documents", "check_index"))
    parts = [value for name, value in stages.items() if name.startswith("index_documents")]
    rejected = valid["counts"].get("quarantined", 0) or listed["counts"].get("rejected", 0)
    rules = valid["facts"].get("quarantined_by_rule") or {}
    reasons = ", ".join(f"{rule}: {count}" for rule, count in sorted(rules.items()))
    embedded = sum(part["counts"].get("embedded", 0) for part in parts)
    metrics, facts = checked["metrics"], checked["facts"]
    return [
        f"{listed['counts']['documents']} documents seen, {rejected} quarantined"
        + (f" ({reasons})" if reasons else ""),
        f"{facts.get('chunks')} chunks in index version {facts['version']}; {embedded} chunks embedded in this run",
        f"golden questions: recall@5 {_figure(metrics, 'recall_at_5')}, nDCG@10 {_figure(metrics, 'ndcg_at_10')}",
    ]


def _training(findings: Findings) -> list[str]:
    stages = findings.references["fine-tuning"]
    train, measured, gate = stages["train"], stages["evaluate"]["metrics"], stages.get("gate", {})
    steps = train["counts"].get("steps", 0)
    done = f"{steps} steps" if steps else "0 steps (the same inputs were trained before; its result is used)"
    lines = [
        done,
        f"training loss on the first rows {_figure(train['metrics'], 'loss_start')} -> "
        f"{_figure(train['metrics'], 'loss_end')}",
        f"held-out loss: base model {_interval(measured, 'base_loss')}, candidate {_interval(measured, 'candidate_loss')}",
        f"difference {_interval(measured, 'difference')} (paired bootstrap, 95 %)",
    ]
    facts = gate.get("facts", {})
    return [
        *lines,
        *_wrapped(f"verdict: {facts.get('verdict', 'none')} - {facts.get('reason') or gate.get('reason') or ''}", 2),
    ]


def _release(findings: Findings) -> list[str]:
    stages = findings.references.get("release", {})
    if "promote" not in stages:
        return ["no new release: the live one goes on"]
    facts = stages["promote"]["facts"]
    return [
        f"release {facts['release']}: model version {facts['model_version']}, index version {facts['index_version']}"
    ]


def _answers(findings: Findings) -> list[str]:
    lines: list[str] = []
    for answer in findings.answers:
        text = " ".join(answer["choices"][0]["message"]["content"].split())
        used = dict.fromkeys(hit.get("uri") or hit.get("document_uri") for hit in answer["documents"])
        lines.append(f"? {answer['question']}"[:WIDTH])
        lines += textwrap.wrap(
            textwrap.shorten(text, 190, placeholder=" ..."), WIDTH - 4, initial_indent="  ", subsequent_indent="  "
        )
        lines.append(f"  from {', '.join(str(uri) for uri in used)}"[:WIDTH])
    return lines


def _drift(findings: Findings) -> list[str]:
    replays, stages = findings.replays, findings.references["drift"]
    report, decision = stages["report_drift"]["facts"], stages["decide"]["facts"]
    drifted = ", ".join(report.get("drifted") or []) or "nothing"
    lines = [
        f"{replays['before']['answered']} requests before the shift, {replays['after']['answered']} after;"
        f" {findings.feedback} corrections by a reviewer",
        f"drifted: {drifted}",
        *_wrapped(f"decision: {decision['action']} - {decision['reason']}", 3),
    ]
    if findings.started:
        run = findings.started
        lines.append(f"started {run['dag_id']} {run['dag_run_id']}: {run['state']}")
        gate = findings.references["retraining"].get("gate", {}).get("facts", {})
        if gate:
            lines.append(f"its verdict: {gate.get('verdict')}")
    if findings.waiting:
        lines.append("its candidate waits for your approval in Airflow: promote_release > Required Actions")
    if second := findings.references.get("second release", {}).get("promote"):
        lines.append(f"its candidate was released by its verdict alone: release {second['facts']['release']}")
    return lines


def _wrapped(text: str, lines: int) -> list[str]:
    """Return a text in at most so many lines; what does not fit is shown as left out."""
    return textwrap.wrap(text, WIDTH - 2, max_lines=lines, placeholder=" ...")


def _figure(values: dict[str, Any], name: str) -> str:
    return f"{values[name]:.3f}" if name in values else "not measured"


def _interval(values: dict[str, Any], name: str) -> str:
    if f"{name}_low" not in values:
        return _figure(values, name)
    return f"{values[name]:.3f} [{values[f'{name}_low']:.3f}, {values[f'{name}_high']:.3f}]"
