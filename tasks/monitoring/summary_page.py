"""The nightly check on one page for people: what moved, by how much, topics and example questions. Pure: returns HTML.

Everything that came from outside (questions, names) is escaped; the page has no script and loads nothing.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from tasks.monitoring.figures import BY_NAME

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1d2330 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #dde1e8 }
td.n { text-align: right; font-variant-numeric: tabular-nums } .harm { color: #b3261e; font-weight: 600 } .moved { font-weight: 600 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } .soft { color: #667085 }
"""


def page(run: str, result: Mapping[str, Any], counts: Mapping[str, int]) -> bytes:
    """Return the page of one night."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Drift check</title><style>{_STYLE}</style><h1>Drift check</h1>",
        f"<p class=soft>{escape(run)}<br>{counts['current']} requests now, {counts['reference']} in the reference</p>",
        _table(result["tests"]),
        _aside(result),
        _topics(result["topics"]),
        _age(result.get("index_age_days")),
        _golden(result["golden"]),
        _skipped(result["not_tested"]),
    ]
    return "\n".join(part for part in parts if part).encode()


def _table(tests: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, test in sorted(tests.items(), key=lambda item: (not item[1]["harm"], not item[1]["drifted"], item[0])):
        state = "worse" if test["harm"] else "moved" if test["drifted"] else ""
        meaning = BY_NAME[name].meaning if name in BY_NAME else "what questions are about (vectors)"
        levels = ["", ""] if test["reference"] is None else [f"{test[side]:.4g}" for side in ("reference", "current")]
        kind = "harm" if test["harm"] else "moved" if test["drifted"] else ""
        rows.append(
            f"<tr class='{kind}'><td>{escape(name)}<td>{escape(meaning)}<td class=n>{levels[0]}<td class=n>{levels[1]}"
            f"<td class=n>{test['p_adjusted']:.3g}<td>{state}"
        )
    head = "<tr><th>figure<th>meaning<th>reference<th>now<th>corrected p<th>"
    return f"<h2>What was compared</h2><table>{head}{''.join(rows)}</table>"


def _aside(result: Mapping[str, Any]) -> str:
    if not result["surges"]:
        return ""
    who = ", ".join(f"one {escape(name)}: {share:.0%}" for name, share in sorted(result["surges"].items()))
    without = f" {result['set_aside']} requests were set aside in the table above." if result["set_aside"] else ""
    gone = f" Without them these are no worse: {escape(', '.join(result['explained']))}." if result["explained"] else ""
    return f"<h2>Who stands out</h2><p>{who} of the requests.{without}{gone}</p>"


def _topics(found: list[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    parts = ["<h2>Topics that appeared or grew</h2>"]
    for topic in found:
        parts.append(
            f"<p><b>{escape(topic['kind'])}</b>: {topic['before']:.1%} &rarr; {topic['now']:.1%} of the questions</p>"
        )
        parts.append("<ul>" + "".join(f"<li>{escape(question)}" for question in topic["examples"]) + "</ul>")
    return "".join(parts)


def _age(days: float | None) -> str:
    return "" if days is None else f"<p>The index of the live release was built {days:.1f} days ago.</p>"


def _golden(golden: Mapping[str, Any]) -> str:
    if golden["problem"]:
        return f"<h2>Golden questions</h2><p>Not asked: {escape(golden['problem'])}</p>"
    rows = "".join(
        f"<tr><td>{escape(name)}<td class=n>{golden['then'].get(name, float('nan')):.3f}<td class=n>{value:.3f}"
        for name, value in sorted(golden["now"].items())
    )
    return f"<h2>Golden questions</h2><table><tr><th><th>when checked<th>now{rows}</table>"


def _skipped(skipped: Mapping[str, str]) -> str:
    if not skipped:
        return ""
    items = "".join(f"<li>{escape(name)}: {escape(why)}" for name, why in sorted(skipped.items()))
    return f"<h2>Not compared</h2><ul class=soft>{items}</ul>"
