"""`assistant_overhead` and `assistant_load`: what the assistant costs beside its model, and what it does when too many ask.

Both in a stack of their own, on the demo's corpus, synced by the stages themselves, with the real base model as the release.
For `assistant_overhead` the assistant answers over HTTP from this process, and the bare model, loaded a second time from the
same folder, generates from the very same prompt tokens with Transformers alone; the two take turns. For `assistant_load` the
assistant is a process of its own.
"""

import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import httpx

from benchmarks.result import Result
from benchmarks.stack import REPOSITORY
from benchmarks.sync import Corpus

OVERHEAD = 0.15
QUESTIONS, TURNS, TOKENS = 16, 2, 48
CLIENTS, ROUNDS, LOAD_TOKENS, SEARCHES = 50, 2, 16, 200


def assistant_overhead() -> Result:
    """Median latency of /v1/chat/completions at one client over that of bare generation from the same prompt tokens."""
    rows: list[tuple[float, float]] = []
    tokens = same = 0
    with _world() as settings, _in_process(settings) as (url, prompts), httpx.Client(base_url=url, timeout=120) as http:
        bare = _bare(settings)
        asked = list(itertools.islice(_questions(), QUESTIONS))
        for question in asked:  # the prompts become known, and both are warm
            http.post("/v1/chat/completions", json=_chat(question, 1)).raise_for_status()
        known = list(prompts)
        bare(known[0])
        for turn, number in itertools.product(range(TURNS), range(QUESTIONS)):
            question, prompt, ours_first = asked[number], known[number], (turn + number) % 2 == 1
            ways: list[Callable[[], Any]] = [
                partial(http.post, "/v1/chat/completions", json=_chat(question, TOKENS)),
                partial(bare, prompt),
            ]
            first, second = (_timed(way) for way in (ways if ours_first else ways[::-1]))
            (ours, said), (theirs, ids) = (first, second) if ours_first else (second, first)
            rows.append((ours, theirs))
            tokens += len(ids)
            made = said.raise_for_status().json()["usage"]["completion_tokens"]
            same += made == len(ids) and prompts[-1] == prompt
    ours, theirs = (statistics.median(side) for side in zip(*rows, strict=True))
    ratios = sorted(a / b - 1 for a, b in rows)
    overhead = ours / theirs - 1
    return Result(
        figure=f"{overhead:+.1%} of bare generation",
        bound=f"{OVERHEAD:.0%}",
        holds=overhead <= OVERHEAD and same == len(rows),
        details=[
            f"p50: the assistant {1000 * ours:.0f} ms, the bare model {1000 * theirs:.0f} ms; "
            f"pairs: median {statistics.median(ratios):+.1%}, from {ratios[0]:+.1%} to {ratios[-1]:+.1%}",
            f"{len(asked)} questions, {TURNS} turns each, at most {TOKENS} tokens, {tokens} made; prompts of {_range(known)} "
            f"tokens; the same prompt and equally many tokens in {same} of {len(rows)}; {_load()}",
        ],
    )


def assistant_load() -> Result:
    """50 clients at once: accepted answers that got lost (none may), rejections at once with 429, p95 of a search."""
    with _world() as settings, _process() as url:
        rounds = [_burst(url) for _ in range(ROUNDS)]
        searches = _searches(url)
        sent = [one for burst in rounds for one in burst]
        recorded = _recorded(settings, [one.id for one in sent if one.status == 200])
    accepted = [one for one in sent if one.status == 200]
    rejected = [one for one in sent if one.status == 429]
    lost = [one for one in accepted if not one.whole or recorded.get(one.id) != one.text]
    others = len(sent) - len(accepted) - len(rejected)
    silent = [one for one in rejected if not one.retry_after]
    slowest = max((one.seconds for one in rejected), default=0.0)
    searches.sort()
    return Result(
        figure=f"{len(lost)} of {len(accepted)} accepted lost",
        bound="0, and every other one of 50 at once rejected with 429 and Retry-After",
        holds=not lost and not others and not silent and bool(accepted) and bool(rejected),
        details=[
            f"{ROUNDS} times {CLIENTS} clients at once: {len(accepted)} accepted, {len(rejected)} rejected with 429 "
            f"(the slowest after {1000 * slowest:.0f} ms), {others} ended otherwise; {len(silent)} without Retry-After",
            f"/v1/search, one client, {len(searches)} questions: p50 {1000 * statistics.median(searches):.1f} ms, "
            f"p95 {1000 * searches[int(0.95 * len(searches))]:.1f} ms; {_load()}",
        ],
    )


@contextmanager
def _world() -> Iterator[Any]:
    """Yield the settings of a stack with a synced index and a release of the base model; they are the environment's."""
    from local.stack import EmbeddedStack
    from tasks.database import migrate
    from tasks.settings import load_settings

    kept = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedStack(Path(name) / "stack", parts=("postgres", "s3", "mlflow")) as stack,
        patch.dict(os.environ, kept | stack.env, clear=True),
    ):
        migrate(stack.env["MILLRACE_DATABASE_URL"])
        Corpus(Path(name), dict(os.environ)).sync()
        settings = load_settings()
        _release(settings)
        yield settings


def _release(settings: Any) -> None:
    """Append a release of the base model as it is, with the current index."""
    from tasks import models
    from tasks.knowledge.index_tables import current
    from tasks.release import ledger
    from tasks.release.propose import read_prompt
    from tasks.serving.prompt import prompt_digest
    from tasks.storage import Storage

    folder = models.fetch(settings.base_model, Path(settings.cache_dir), Storage(settings.s3_endpoint_url))
    prompt = read_prompt(settings)
    with ledger.ledger(settings) as connection:
        index = current(connection)
        assert index is not None  # it was just switched to
        parts = ledger.Parts(
            model_name="base", model_version="1", adapter_uri=None, adapter_sha256=None, base_model=settings.base_model,
            base_revision=models.revision(settings.base_model, folder), prompt_sha256=prompt_digest(prompt), prompt=prompt,
            index_version=index.version, embedder=index.embedder, dataset_sha256=None, code_revision="benchmark",
            evidence_uri="s3://none", evidence_sha256="0" * 64,
        )  # fmt: skip
        ledger.append(
            connection, parts, kind="promotion", approved_by="benchmark", reason="benchmark", run="benchmark", expected_live=None
        )  # fmt: skip


@contextmanager
def _in_process(settings: Any) -> Iterator[tuple[str, list[list[int]]]]:
    """Yield the address of an assistant that this process serves, and the prompts that its model is given."""
    import uvicorn

    from tasks.serving.api import create_app
    from tasks.serving.server import listen, running

    listener, prompts = listen("127.0.0.1", 0), list[list[int]]()
    with running(settings, _threads()) as (assistant, feedback):
        server = uvicorn.Server(uvicorn.Config(create_app(assistant, feedback), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        _until_ready(url)
        model: Any = assistant.releases.live.model  # type: ignore[union-attr]  # it is ready
        generate = model.generate

        def noted(adapter: Any, token_ids: list[int], *others: Any) -> Any:
            prompts.append(token_ids)
            return generate(adapter, token_ids, *others)

        model.generate = noted
        try:
            yield url, prompts
        finally:
            server.should_exit = True
            thread.join()


def _bare(settings: Any) -> Callable[[list[int]], list[int]]:
    """Return generation by Transformers alone, with the prompt's repetition penalty as the assistant has it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, RepetitionPenaltyLogitsProcessor

    from tasks import models
    from tasks.release.propose import read_prompt
    from tasks.serving.prompt import parse_prompt
    from tasks.serving.transformers_model import fastest_type
    from tasks.storage import Storage

    torch.set_num_threads(_threads())
    folder = models.fetch(settings.base_model, Path(settings.cache_dir), Storage(settings.s3_endpoint_url))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=fastest_type(), use_safetensors=True).eval()
    ends = {AutoTokenizer.from_pretrained(folder).eos_token_id, *_list(model.generation_config.eos_token_id)}
    penalty = parse_prompt(read_prompt(settings), settings.prompt).front.repetition_penalty

    def generate(token_ids: list[int]) -> list[int]:
        ids = torch.tensor([token_ids])
        processors = (
            [RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=len(token_ids))] if penalty > 1 else []
        )
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, temperature=None,
                top_p=None, top_k=None, eos_token_id=sorted(ends - {None}), pad_token_id=0, logits_processor=processors,
            )  # fmt: skip
        tokens: list[int] = made[0, len(token_ids) :].tolist()
        return tokens

    return generate


@contextmanager
def _process() -> Iterator[str]:
    """Yield the address of an assistant that is a process of its own, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tasks", "serve", "--port", str(port)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _until_ready(url)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


@dataclass
class Sent:
    """One request of many at once, and what came back."""

    status: int
    seconds: float
    retry_after: str = ""
    id: UUID = field(default_factory=lambda: UUID(int=0))
    text: str = ""
    whole: bool = False


def _burst(url: str) -> list[Sent]:
    """Send from all clients at the same moment; return what each got."""
    start = threading.Barrier(CLIENTS)

    def one(question: str) -> Sent:
        with httpx.Client(base_url=url, timeout=300) as http:
            http.get("/healthz")  # the connection stands before the moment
            start.wait()
            seconds, answer = _timed(partial(http.post, "/v1/chat/completions", json=_chat(question, LOAD_TOKENS)))
        if answer.status_code != 200:
            return Sent(answer.status_code, seconds, answer.headers.get("retry-after", ""))
        said = answer.json()
        choice = said["choices"][0]
        whole = choice["finish_reason"] in {"stop", "length"} and said["usage"]["completion_tokens"] > 0
        return Sent(200, seconds, id=UUID(said["request_id"]), text=choice["message"]["content"], whole=whole)

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(one, itertools.islice(_questions(), CLIENTS)))


def _searches(url: str) -> list[float]:
    with httpx.Client(base_url=url, timeout=60) as http:
        asked = itertools.islice(_questions(), SEARCHES)
        timed = [_timed(partial(http.post, "/v1/search", json={"query": question})) for question in asked]
    for _seconds, answer in timed:
        answer.raise_for_status()
    return [seconds for seconds, _answer in timed]


def _recorded(settings: Any, ids: list[UUID]) -> dict[UUID, str]:
    """Return the answers in `requests` by id, once all are there or half a minute is over."""
    from tasks.database import connect

    deadline = time.monotonic() + 30
    while True:
        with connect(settings.database_url.get_secret_value()) as connection:
            rows = connection.execute("SELECT id, answer FROM requests WHERE id = ANY(%s)", (ids,)).fetchall()
        if len(rows) >= len(ids) or time.monotonic() > deadline:
            return {row["id"]: row["answer"] for row in rows}
        time.sleep(0.5)


def _questions() -> Iterator[str]:
    """Yield the golden questions, again and again."""
    lines = (REPOSITORY / "examples" / "golden_questions.jsonl").read_text(encoding="utf-8").splitlines()
    return itertools.cycle(json.loads(line)["question"] for line in lines)


def _chat(question: str, tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": tokens}


def _until_ready(url: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.2)
    raise TimeoutError(f"expected an assistant that is ready at {url} within 5 minutes, found none")


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    made = work()
    return time.perf_counter() - started, made


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _range(prompts: list[list[int]]) -> str:
    sizes = sorted(map(len, prompts))
    return f"{sizes[0]} to {sizes[-1]}"


def _load() -> str:
    return f"load of the machine (1 minute): {os.getloadavg()[0]:.1f} on {_threads()} cores"
