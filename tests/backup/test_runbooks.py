"""The runbooks' commands exist, and an API key can be changed without an interruption."""

import asyncio
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from tasks.backup.command import _read
from tasks.errors import OptionError
from tasks.registry import TOOLS
from tasks.serving.guard import Guard
from tasks.serving.keys import parse_keys
from tasks.settings import REPOSITORY

PAGES = [*sorted((REPOSITORY / "docs" / "runbooks").glob("*.md")), REPOSITORY / "docs" / "backup.md"]
KNOWN = {
    "backup": ("to", "keep", "verify"),
    "backups": ("at",),
    "verify_backup": ("at", "backup"),
    "restore": ("from", "backup", "into", "only"),
    "reconcile": (),
}


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_of_a_backup_command_exists(page: Path) -> None:
    for command, rest in re.findall(r"python -m tasks (\w+)([^`\n|]*)", text(page)):
        if command in KNOWN:
            named = set(re.findall(r"--([a-z]+)", rest))
            assert named <= set(KNOWN[command]), f"{page.name}: {command} {rest}"


def test_the_options_listed_here_are_those_of_the_commands() -> None:
    assert set(KNOWN) <= set(TOOLS)
    with pytest.raises(OptionError, match="Did you mean 'into'"):
        _read(["--inti", "x"], "restore", KNOWN["restore"])


@pytest.mark.airflow
def test_every_airflow_command_exists() -> None:
    """Airflow's own parser is asked, in a process of its own: it is slow, and sets much up."""
    named = set()
    for page in PAGES:
        named |= set(
            re.findall(r"(?:^|`|-m )airflow ((?:db|dags|connections) [a-z-]+|rotate-fernet-key)", text(page), re.M)
        )
    assert {"db migrate", "rotate-fernet-key"} <= named
    code = (
        "import sys; from airflow.cli.cli_parser import get_parser\n"
        "parser = get_parser()\n"
        "def names(p): return next(a for a in p._actions if hasattr(a, 'choices') and isinstance(a.choices, dict)).choices\n"
        "for line in sys.argv[1:]:\n"
        "    for word in line.split():\n"
        "        assert word in names(parser), line\n"
        "        parser = names(parser)[word]\n"
        "    parser = get_parser()\n"
        "print('all there')"
    )
    done = subprocess.run([sys.executable, "-c", code, *sorted(named)], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("all there"), done.stderr[-600:]


def answers(digests: str, key: str) -> int:
    guard = Guard(PlainTextResponse("hello"), parse_keys(digests))

    async def ask() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://assistant") as client:
            return await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})

    return int(asyncio.run(ask()).status_code)


def test_two_api_keys_are_accepted_while_both_digests_stand() -> None:
    old, new = (hashlib.sha256(key.encode()).hexdigest() for key in ("old key", "new key"))
    assert [answers(old, key) for key in ("old key", "new key")] == [200, 401]
    assert [answers(f"{old},{new}", key) for key in ("old key", "new key")] == [200, 200]
    assert [answers(new, key) for key in ("old key", "new key")] == [401, 200]
