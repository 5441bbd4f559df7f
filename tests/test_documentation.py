"""The README and its neighbours name only what exists: commands, targets, environment variables, files."""

import re
from pathlib import Path

import pytest

from tasks.registry import STAGES, TOOLS
from tasks.settings import REPOSITORY, variable_names

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
CODE = re.compile(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", re.DOTALL)


def local_names() -> set[str]:
    from local.settings import VARIABLES

    return set(VARIABLES)


def code_of(page: Path) -> str:
    """Return everything set in code on a page."""
    return "\n".join(block or span for block, span in CODE.findall(page.read_text(encoding="utf-8")))


def page_id(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_environment_variable_named_exists(page: Path) -> None:
    named = set(re.findall(r"\bMILLRACE_[A-Z0-9_]*[A-Z0-9]\b(?!\*)", page.read_text(encoding="utf-8")))
    assert named <= {*variable_names(), *local_names()}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_make_target_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|[\s;&`])make ((?:[a-z]+)(?: [a-z]+)*)", code_of(page), re.MULTILINE))
    assert {target for words in named for target in words.split()} <= targets


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_stage_and_tool_named_exists(page: Path) -> None:
    named = {name.replace("-", "_") for name in re.findall(r"python -m tasks ([a-z_-]+)", code_of(page))}
    assert named <= {*STAGES, *TOOLS}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8"))
    for link in {a or b for a, b in links}:
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page_id(page)} links to {link}"


def test_the_tree_in_the_readme_is_the_tree() -> None:
    """Every line of the captioned tree names something that exists, and every top-level folder has a line."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    tree = text.split("<!-- tree -->")[1].split("<!-- end of tree -->")[0]
    folder = ""
    named = set()
    for line in tree.splitlines():
        if match := re.match(r"^(  )?([A-Za-z_.][\w./-]*)\s{2,}\S", line):
            indented, name = match.groups()
            if not indented:
                folder = name if name.endswith("/") else ""
            path = (folder if indented else "") + name
            named.add(path)
            assert (REPOSITORY / path).exists(), f"the tree names {path}"
    tops = {path.name + "/" for path in REPOSITORY.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    tracked = {top for top in tops if any((REPOSITORY / top).rglob("*.*"))}
    assert tracked <= {name.split("/")[0] + "/" for name in named}


def test_every_variable_of_the_settings_is_in_the_example_file() -> None:
    text = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
    listed = set(re.findall(r"^#?\s*(MILLRACE_[A-Z0-9_]+)=", text, re.MULTILINE))
    assert {*variable_names(), *local_names()} == listed
