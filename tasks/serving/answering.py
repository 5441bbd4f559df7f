"""How a question becomes an answer: look up chunks, fill the prompt, generate.

Reads the index version of the live release through `tasks.knowledge.search`, and gives every request to
the request log. Lookups run on one thread and generations on the model's, so neither crowds the cores;
more than a bounded number of waiting requests are refused at once (`Busy`). Fails with `NoRelease`,
`KnowledgeAway`, `QuestionTooLong`, `Busy`, or `UnknownModel`.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from tasks.errors import BadInput, MillraceError, ServiceUnavailable
from tasks.serving.grounding import grounded
from tasks.serving.guardrails import Guardrails
from tasks.serving.hits import kept
from tasks.serving.keys import key_name
from tasks.serving.language_model import Generated, Sampling
from tasks.serving.limits import Limits
from tasks.serving.line import Line
from tasks.serving.lookup import Find, Vector
from tasks.serving.metrics import Meters
from tasks.serving.prompting import BuiltPrompt, Message, build_prompt
from tasks.serving.refusals import LEFT, KnowledgeAway, UnknownModel
from tasks.serving.releases import Loaded, Releases
from tasks.serving.request_log import RequestLog, RequestRow
from tasks.serving.shadow import Shadow
from tasks.serving.spans import Steps
from tasks.serving.telling import Listener
from tasks.serving.trace_log import TraceLog
from tasks.serving.tracing import request_id, trace_id
from tasks.serving.unknown import NO_PROMPT, said_at_once, says_so

if TYPE_CHECKING:
    from tasks.knowledge.search import Hit

log = logging.getLogger(__name__)

ANSWER_SECONDS = 120.0
LIVE_MODEL = "millrace"  # stands for whatever release is live, for clients that do not follow names


@dataclass(frozen=True)
class Searched:
    """What a search found."""

    row: RequestRow
    hits: "Sequence[Hit]"


@dataclass(frozen=True)
class Begun:
    """A chat request whose prompt is made, and whose answer follows."""

    row: RequestRow
    loaded: Loaded
    built: BuiltPrompt


@dataclass(frozen=True)
class Answered:
    """What a chat request got: the model's text, and what it was made from."""

    row: RequestRow
    loaded: Loaded
    built: BuiltPrompt
    generated: Generated


class Assistant:
    """Answers with the live release. Safe to call from many threads."""

    def __init__(
        self,
        releases: Releases,
        requests: RequestLog,
        find: Find,
        *,
        chat_places: int = 9,
        search_places: int = 24,
        seconds: float = ANSWER_SECONDS,
        guardrails: Guardrails | None = None,
        limits: Limits | None = None,
        traces: TraceLog | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self.releases, self.requests = releases, requests
        self._find, self.seconds = find, seconds
        self.guardrails, self.limits = guardrails or Guardrails(), limits or Limits()
        self._chat_line, self._search_line = Line(chat_places), Line(search_places)
        self._traces, self.shadow = traces or TraceLog.off(), shadow or Shadow.off(releases)
        self.meters = Meters(releases, requests, self._traces, self.shadow)
        self.meters.places("chat", chat_places)
        self.meters.places("search", search_places)
        self._listeners: set[Listener] = set()
        self._lookups = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lookup")

    def search(self, question: str, k: int, client: str) -> Searched:
        """Return the chunks nearest to `question`."""
        row = _row("search", question, client)
        with self._recorded(row) as steps, self._search_line.place(), self.releases.use() as loaded:
            with steps.step("retrieval"):
                hits = self._look_up(loaded, row, k)
            self.guardrails.searched(row, hits)
            return Searched(row, hits)

    def chat(self, messages: Sequence[Message], model: str | None, sampling: Sampling, client: str) -> Answered:
        """Return the model's answer to the last message, which is the user's."""
        *_, answered = self.stream(messages, model, sampling, client)
        assert isinstance(answered, Answered)
        return answered

    def stream(
        self, messages: Sequence[Message], model: str | None, sampling: Sampling, client: str
    ) -> Generator[Begun | str | Answered]:
        """Yield the prompt once it is made, the pieces of the answer while the model writes, and the answer.

        Whoever closes the generator before its end has left: the model stops at its next token.
        """
        clock = time.monotonic()
        row = _row("chat", messages[-1]["content"], client)
        with (
            self._recorded(row) as steps,
            self._chat_line.place(),
            self.shadow.aside(),
            self.releases.use() as loaded,
        ):
            built = self._prompt(row, steps, loaded, messages, model, sampling.max_tokens)
            yield Begun(row, loaded, built)
            sampling = replace(sampling, repetition_penalty=loaded.prompt.front.repetition_penalty)
            steps.release, steps.prompt, steps.built, steps.sampling = loaded.release, loaded.prompt, built, sampling
            row.prompt_tokens = len(built.token_ids)
            generated = yield from self._written(row, steps, loaded, built, sampling, clock)
            row.answer, steps.generated = generated.text, generated
            row.refused = row.refused or says_so(generated.text, loaded.prompt.front.unknown)
            if built is not NO_PROMPT:
                row.grounded = grounded(generated.text, [row.question, *(hit.text for hit in built.shown)])
            row.prompt_tokens, row.completion_tokens = generated.prompt_tokens, generated.completion_tokens
            answered = Answered(row, loaded, built, generated)
        yield answered  # when its place is free again, and its row has its time
        self.shadow.offer(row, steps, messages[-1]["content"])

    def _prompt(
        self,
        row: RequestRow,
        steps: Steps,
        loaded: Loaded,
        messages: Sequence[Message],
        model: str | None,
        max_tokens: int,
    ) -> BuiltPrompt:
        """Return the prompt of a chat, NO_PROMPT where no document is good enough. Raises what refuses it."""
        known = (LIVE_MODEL, loaded.release.model_name)
        if model is not None and model not in known:
            raise UnknownModel(f"expected model {' or '.join(known)}, found {model!r}. Next: GET /v1/models.")
        self.guardrails.ask(row, (message["content"] for message in messages))
        with steps.step("retrieval"):
            found = self._look_up(loaded, row, loaded.prompt.front.documents)
        hits = self.guardrails.usable(row, found)
        with steps.step("prompt"):
            unknown = self.guardrails.unknown(row, hits)
            built = NO_PROMPT if unknown else build_prompt(loaded, messages, hits, max_tokens)
        self.meters.cut(built.context_tokens_cut)
        return built

    def _written(
        self, row: RequestRow, steps: Steps, loaded: Loaded, built: BuiltPrompt, sampling: Sampling, clock: float
    ) -> Generator[str, None, Generated]:
        """Yield the pieces of an answer while the model writes; return the whole."""
        listener, told = Listener(clock + self.seconds), list[str]()
        with self._heard(listener), steps.step("generation"):
            try:
                if built is NO_PROMPT:
                    generation = said_at_once(loaded.prompt.front.unknown, listener)
                else:
                    generation = loaded.model.generate(loaded.adapter, built.token_ids, sampling, listener)
                    generation.add_done_callback(self._timed(row, clock))
                    generation.add_done_callback(partial(self.releases.ended, loaded))
                for piece in listener.pieces(generation):
                    if piece and row.first_token_ms is None:
                        row.first_token_ms = (time.monotonic() - clock) * 1000
                    told.append(piece)
                    yield "" if self.guardrails.redact_answers else piece
                generated = self.guardrails.answered(row, generation.result())
                if self.guardrails.redact_answers:
                    yield generated.text  # whole: the beginning of a secret is told with the rest, or not at all
            except GeneratorExit:
                row.answer, row.completion_tokens = "".join(told), listener.tokens
                raise
        return generated

    @contextmanager
    def _heard(self, listener: Listener) -> Iterator[None]:
        """Keep a listener among those that `hurry` ends; it has left when the block ends."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            listener.leave()
            self._listeners.discard(listener)

    def _timed(self, row: RequestRow, began: float) -> "Callable[[Future[Generated]], None]":
        """Return what takes the times of a generation when it ends; how long its client takes to read is not in them."""
        submitted = time.monotonic()

        def done(_generation: "Future[Generated]") -> None:
            self.meters.took(row.kind, "generation", time.monotonic() - submitted)
            row.latency_ms = (time.monotonic() - began) * 1000

        return done

    def hurry(self) -> None:
        """End the generations at hand, and those in line, with what they have: the assistant is to stop."""
        for listener in list(self._listeners):
            listener.leave()

    def close(self) -> None:
        """Stop the lookup thread."""
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def _look_up(self, loaded: Loaded, row: RequestRow, k: int) -> "Sequence[Hit]":
        row.release, row.index_version = loaded.release.release, loaded.release.index_version

        def work() -> "Sequence[Hit]":
            cut_before = loaded.embedder.truncated
            vector: Vector = loaded.embedder.encode([row.question], kind="query")[0]
            row.embedding = vector
            row.question_cut = loaded.embedder.truncated > cut_before
            return self._find(loaded, row.question, vector, k)

        started = time.monotonic()
        try:
            with self.meters.phase(row.kind, "retrieval"):
                hits = self._lookups.submit(work).result()
            row.retrieval_ms = (time.monotonic() - started) * 1000
        except (ServiceUnavailable, BadInput) as error:
            # Postgres or the endpoint is away, the version was retired, a key is refused: never the question's fault,
            # and the error names settings and machines, which are for the log.
            log.error("request=%s nothing can be looked up: %s: %s", row.id, type(error).__name__, error)
            raise KnowledgeAway(
                "expected the index to answer, found it away. Next: try again; the assistant's log says why."
            ) from error
        row.hits = [kept(hit) for hit in hits]
        row.best_score = max((float(hit.score) for hit in hits), default=None)
        return hits

    @contextmanager
    def _recorded(self, row: RequestRow) -> Iterator[Steps]:
        """Time and count the block, and give its row to the request log, with the name of the error it ended with."""
        started, steps = time.monotonic(), Steps()
        try:
            with self.meters.in_flight(row.kind):
                yield steps
        except GeneratorExit:
            row.error = LEFT
            raise
        except BaseException as error:
            row.error = type(error).__name__ if isinstance(error, MillraceError) else "InternalError"
            raise
        finally:
            row.latency_ms = row.latency_ms or (time.monotonic() - started) * 1000
            self.guardrails.keep(row)
            self.meters.ended(row)
            self.requests.put(row)
            self.limits.spend(row)
            self._traces.put(row, steps)  # after `keep`: a trace holds what the row may hold
            log.info(
                "request=%s kind=%s key=%s error=%s ms=%.1f", row.id, row.kind, row.key_name, row.error, row.latency_ms
            )


def _row(kind: str, question: str, client: str) -> RequestRow:
    return RequestRow(kind, question, client, request_id(), key_name=key_name(), trace_id=trace_id())
