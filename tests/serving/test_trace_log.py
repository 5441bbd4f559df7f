"""Traces: which requests make one, what its spans say (read back from a real MLflow), and what an MLflow that is away costs."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest

from tasks.serving.answering import Assistant
from tasks.serving.language_model import LanguageModel, Sampling
from tasks.serving.request_log import RequestLog, RequestRow
from tasks.serving.spans import EXPERIMENT, Steps, trace_name, trace_of
from tasks.serving.trace_log import CAPACITY, TraceLog, sampled

from .conftest import app_of, call, find_in_memory

CHAT = {"messages": [{"role": "user", "content": "when does the while loop run the else clause"}], "max_tokens": 6}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@contextmanager
def traced(ready: Assistant, requests: RequestLog, traces: TraceLog) -> Iterator[Assistant]:
    """Yield an assistant like `ready` whose requests are traced."""
    made = Assistant(ready.releases, requests, find_in_memory, traces=traces)
    try:
        yield made
    finally:
        made.close()
        traces.close()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a span in OTLP's form, by name."""
    return {item["key"]: next(iter(item["value"].values())) for item in span["attributes"]}


def test_the_share_is_one_of_trace_ids() -> None:
    ids = [f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}" for number in range(4000)]
    assert not any(sampled(one, 0.0) for one in ids) and all(sampled(one, 1.0) for one in ids)
    few = {one for one in ids if sampled(one, 0.1)}
    assert 300 < len(few) < 500 and few <= {one for one in ids if sampled(one, 0.3)}


@pytest.mark.integration
def test_a_request_is_one_trace_in_mlflow(stack: Any, ready: Assistant, requests: RequestLog) -> None:
    import mlflow

    uri = stack.env["MILLRACE_MLFLOW_TRACKING_URI"]
    with traced(ready, requests, TraceLog(uri, 1.0)) as assistant:
        app = app_of(assistant)
        parent = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        # Two requests of one W3C trace: in MLflow they stay two.
        answers = [call(app, "POST", "/v1/chat/completions", json=CHAT, headers=parent) for _ in range(2)]
        found = call(app, "POST", "/v1/search", json={"query": "value of a function"}, headers=parent)
        until(lambda: assistant.meters._registry.get_sample_value(*WRITTEN) == 3)
    client = mlflow.MlflowClient(tracking_uri=uri)
    answer = answers[1].json()
    request_id = UUID(answer["request_id"])
    trace = client.get_trace(trace_name(request_id))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None and trace.info.experiment_id == experiment.experiment_id
    assert {name: trace.info.tags.get(f"millrace.{name}") for name in ("request_id", "trace_id", "release", "outcome")} == {
        "request_id": str(request_id), "trace_id": TRACE, "release": "1", "outcome": "answered",
    }  # fmt: skip
    usage = {name: trace.info.token_usage[name] for name in ("input_tokens", "output_tokens", "total_tokens")}
    assert list(usage.values()) == [answer["usage"][f"{name}_tokens"] for name in ("prompt", "completion", "total")]
    spans = {span.span_type: span for span in trace.data.spans}
    assert set(spans) == {"CHAIN", "RETRIEVER", "TASK", "CHAT_MODEL"} and len(trace.data.spans) == 4
    root, generation = spans["CHAIN"], spans["CHAT_MODEL"]
    assert root.inputs["messages"][0]["content"] == CHAT["messages"][0]["content"]  # type: ignore[index]
    assert root.outputs == generation.outputs == answer["choices"][0]["message"]["content"]
    assert all(span.parent_id == root.span_id for span in trace.data.spans if span is not root)
    assert all(root.start_time_ns <= s.start_time_ns <= s.end_time_ns <= root.end_time_ns for s in trace.data.spans)
    assert spans["RETRIEVER"].end_time_ns <= spans["TASK"].start_time_ns
    assert generation.attributes["gen_ai.operation.name"] == "chat" and generation.name == "chat tiny"
    assert generation.attributes["gen_ai.response.finish_reasons"] == [answer["choices"][0]["finish_reason"]]
    assert generation.attributes["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    assert 0 < generation.attributes["gen_ai.server.time_to_first_token"] < answer["millrace"]["seconds"] + 0.01
    documents = spans["RETRIEVER"].attributes["gen_ai.retrieval.documents"]
    assert [one["id"] for one in documents] == ["2", "1"] and documents[0]["score"] > documents[1]["score"]
    other = client.get_trace(trace_name(UUID(found.json()["request_id"])))
    assert {span.span_type for span in other.data.spans} == {"CHAIN", "RETRIEVER"}


WRITTEN = ("millrace_assistant_traces_total", {"result": "written"})


def test_a_failed_request_and_a_guardrail_are_told() -> None:
    row = RequestRow(kind="chat", question="who?", error="KnowledgeAway", latency_ms=5.0)
    row.guardrails = [{"rule": "injection", "where": "document", "action": "left out"}]
    steps = Steps()
    with steps.step("retrieval"):
        pass
    root, retrieval, guardrails = trace_of(row, steps)
    assert (
        root["status"] == {"code": 2, "message": "KnowledgeAway"} and attributes(root)["error.type"] == "KnowledgeAway"
    )
    assert int(root["endTimeUnixNano"]) - int(root["startTimeUnixNano"]) == 5_000_000
    assert retrieval["parentSpanId"] == guardrails["parentSpanId"] == root["spanId"]
    assert attributes(guardrails["events"][0])["rule"] == "injection"
    left = trace_of(RequestRow(kind="chat", question="who?", error="ClientLeft"), Steps())[0]
    assert left["status"] == {"code": 1} and attributes(left)["mlflow.traceTag.millrace.outcome"] == "ClientLeft"


def test_an_mlflow_that_hangs_costs_no_answer_anything(ready: Assistant, requests: RequestLog) -> None:
    """Its port takes connections and says nothing: answers come, the queue fills, what has no room is counted."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        traces = TraceLog(f"http://127.0.0.1:{silent.getsockname()[1]}", 1.0, capacity=2)
        assistant = Assistant(ready.releases, requests, find_in_memory, traces=traces)
        app = app_of(assistant)
        started = time.monotonic()
        for _ in range(6):
            assert call(app, "POST", "/v1/search", json={"query": "value"}).status_code == 200
        assert time.monotonic() - started < 5
        assert traces.counts()["dropped"] >= 3 and traces.counts()["written"] == 0
        assert 'traces_total{result="dropped"} 0.0' not in call(app, "GET", "/metrics").text
        assistant.close()
    traces.close()


@pytest.mark.integration
def test_what_an_outage_held_up_is_written_after_it(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import mlflow_http
    from tasks.errors import ServiceUnavailable

    failures = iter([True, True])
    send = mlflow_http.MlflowHttp._send

    def flaky(self: Any, *arguments: Any, **given: Any) -> Any:
        if next(failures, False):
            raise ServiceUnavailable("away")
        return send(self, *arguments, **given)

    monkeypatch.setattr(mlflow_http.MlflowHttp, "_send", flaky)
    monkeypatch.setattr("tasks.serving.trace_log.FIRST_PAUSE", 0.1)
    traces = TraceLog(stack.env["MILLRACE_MLFLOW_TRACKING_URI"], 1.0)
    for _ in range(3):
        traces.put(RequestRow(kind="search", question="q", trace_id=TRACE), Steps())
    until(lambda: traces.counts()["written"] == 3)
    traces.close()
    assert traces.counts() == {"written": 3, "dropped": 0, "refused": 0}


def test_without_a_share_there_is_no_thread_and_nothing_is_kept() -> None:
    traces = TraceLog("http://127.0.0.1:9", 0.0)
    for _ in range(CAPACITY + 1):
        traces.put(RequestRow(kind="search", question="q", trace_id=TRACE), Steps())
    assert traces._thread is None and traces.counts() == {"written": 0, "dropped": 0, "refused": 0}


def test_a_trace_holds_nothing_of_a_model(ready: Assistant, model: LanguageModel) -> None:
    """It may wait for MLflow while the next release is loaded: the old model must not stay in memory for it."""
    kept: list[Steps] = []
    ready._traces.put = lambda row, steps: kept.append(steps)  # type: ignore[method-assign]
    ready.chat([{"role": "user", "content": "loop"}], None, Sampling(max_tokens=2), "")
    held = [kept[0].release, kept[0].prompt, kept[0].built, kept[0].sampling, kept[0].generated]
    assert all(held) and model not in held and ready.releases.live not in held
