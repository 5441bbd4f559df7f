"""corpora.yaml: names, sources, overrides of settings, and what is refused."""

from pathlib import Path

import pytest

from tasks.contracts import Manifest
from tasks.errors import SettingsError
from tasks.knowledge.corpora import load_corpora, name_of, of_listing, settings_of, source_of
from tasks.settings import Settings, load_settings

NEEDED = {"MILLRACE_DATABASE_URL": "postgresql://x", "MILLRACE_MLFLOW_TRACKING_URI": "http://x"}
TWO = """
corpora:
  default:
    schedule: "0 2 * * *"
  handbook:
    source: s3://documents/handbook/
    golden_questions: s3://documents/golden.jsonl
    chunk_tokens: 160
    search_mode: hybrid
"""


@pytest.fixture
def two(tmp_path: Path) -> Settings:
    path = tmp_path / "corpora.yaml"
    path.write_text(TWO)
    return load_settings({**NEEDED, "MILLRACE_CORPORA": str(path), "MILLRACE_CHUNK_TOKENS": "180"})


def test_a_corpus_says_for_itself_what_differs(two: Settings) -> None:
    own = settings_of(two, "handbook")
    assert (own.chunk_tokens, own.search_mode, own.golden_questions) == (160, "hybrid", "s3://documents/golden.jsonl")
    assert own.embedder == two.embedder
    assert settings_of(two).chunk_tokens == 180
    assert source_of(two, "handbook") == "s3://documents/handbook/"


def test_a_place_is_the_default_corpus_read_from_there(two: Settings) -> None:
    assert (name_of(two, "s3://b/c"), source_of(two, "s3://b/c")) == ("default", "s3://b/c")
    assert source_of(two) == source_of(two, "default") == "pydoc:topics"


def test_the_setting_may_name_a_corpus(two: Settings) -> None:
    own = two.model_copy(update={"corpus": "handbook"})
    assert (name_of(own, own.corpus), source_of(own)) == ("handbook", "s3://documents/handbook/")
    with pytest.raises(SettingsError, match="expected a source of the corpus 'default'"):
        source_of(own, "default")


def test_there_is_a_default_corpus_whether_the_file_names_it_or_not(tmp_path: Path) -> None:
    path = tmp_path / "corpora.yaml"
    path.write_text("corpora: {handbook: {source: /h, golden_questions: /g, chunk_tokens: 160}}")
    plain = load_settings({**NEEDED, "MILLRACE_CORPORA": str(path)})
    assert (name_of(plain, plain.corpus), source_of(plain)) == ("default", "pydoc:topics")
    assert source_of(plain, "default") == "pydoc:topics"
    listed = Manifest.model_construct(facts={"corpus": "default"})
    assert of_listing(plain, {}, {"list_documents": listed}).chunk_tokens == plain.chunk_tokens
    with pytest.raises(SettingsError, match="expected a source of the corpus 'default'"):
        source_of(plain.model_copy(update={"corpus": "default"}))


def test_the_file_of_the_repository_is_good() -> None:
    assert load_corpora("corpora.yaml")["default"].schedule == "0 2 * * *"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("corpora: {default: {chunk_token: 3}}", "Did you mean 'chunk_tokens'"),
        ("corpora: {other: {source: /x}}", "expected source and golden_questions of 'other'"),
        ("corpora: {Bad-Name: {}}", "found 'Bad-Name'"),
        ("corpora: []", "expected one key `corpora`"),
        ("other: {}", "expected one key `corpora`"),
        ("corpora: {default: {chunk_tokens: 3}}", "chunk_tokens: input should be greater"),
        ("corpora: {default: {search_mode: fuzzy}}", "search_mode: input should be 'vector'"),
        ("corpora: {", "expected corpora in corpora.yaml"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "corpora.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        settings_of(load_settings({**NEEDED, "MILLRACE_CORPORA": str(path)}))
    assert said in str(caught.value)


def test_an_unknown_name_is_told_with_the_nearest(two: Settings) -> None:
    with pytest.raises(SettingsError, match="Did you mean 'handbook'"):
        settings_of(two, "handbok")
