"""Prompt files."""

from pathlib import Path

import pytest

from tasks.errors import ReleaseError
from tasks.serving.prompt import load_prompt, parse_prompt, prompt_digest
from tasks.settings import Settings, repository_path

GOOD = "---\nname: a\nversion: 2\n---\n{context} {question}\n"


def test_the_shipped_prompt_can_be_used() -> None:
    prompt = load_prompt(repository_path(Settings.model_fields["prompt"].default))
    assert prompt.front.documents >= 1 and prompt.front.context_tokens >= 100
    assert "CONTEXT" in prompt.render("CONTEXT", "QUESTION") and "QUESTION" in prompt.render("CONTEXT", "QUESTION")
    assert prompt.sha256 == prompt_digest(prompt.text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{context} {question}", "front matter"),
        (GOOD.replace("{question}", ""), "{question}"),
        (GOOD.replace("{question}", "{question} {question}"), "2 times"),
        (GOOD.replace("version", "verison"), "verison"),
        (GOOD.replace("version: 2", "version: two"), "version"),
        (GOOD.replace("name: a", "name: [a"), "front matter"),
        (GOOD.replace("name: a\nversion: 2\n", "- a\n"), "front matter"),
    ],
)
def test_a_prompt_that_cannot_be_used_says_why(text: str, message: str) -> None:
    with pytest.raises(ReleaseError, match="Next:") as caught:
        parse_prompt(text, "p.md")
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"none\.md"):
        load_prompt(tmp_path / "none.md")
    (tmp_path / "latin.md").write_bytes(b"\xff")
    with pytest.raises(ReleaseError, match=r"latin\.md"):
        load_prompt(tmp_path / "latin.md")
