"""`python -m tasks index`, against real Postgres and S3."""

import pytest

from tasks.database import connect
from tasks.errors import DataError, OptionError
from tasks.knowledge.index_tool import main
from tests.knowledge.syncing import Sync, current, document, embedded, rows_of

pytestmark = pytest.mark.integration
WHY = ("--by", "ada", "--reason", "the new one forgets birds")


def shown(rows: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [(row["document_uri"], row["ordinal"], row["text"], row["embedding"]) for row in rows]


def test_a_former_version_serves_again_and_the_next_sync_goes_on(
    sync: Sync, capsys: pytest.CaptureFixture[str]
) -> None:
    sync.write("whale.md", document("whale", "squid"))
    first = sync.run("first")["check_index"].facts["version"]
    sync.write("owl.md", document("owl", "voles"))
    (sync.corpus / "whale.md").unlink()
    second = sync.run("second")["check_index"].facts["version"]
    assert current() == second != first
    assert main(["use", str(first), *WHY]) == 0
    assert current() == first
    assert main(["list", "--corpus", "default"]) == 0
    told = capsys.readouterr().out
    assert "put back by ada" in told
    assert f"version {second} served until now" in told
    third = sync.run("third")
    assert current() not in (first, second)
    assert embedded(third) == 0, "what was embedded before comes from the cache"
    assert shown(rows_of(current() or 0)) == shown(rows_of(second)), "what was deleted or changed since is so again"


def test_a_sync_that_runs_meanwhile_does_not_switch_over_it(sync: Sync) -> None:
    first = sync.run("first")["check_index"].facts["version"]
    sync.write("owl.md", document("owl", "voles"))
    sync.run("second")
    sync.write("owl.md", document("owl", "shrews"))
    sync.up_to("check_index", "third")
    assert main(["use", str(first), *WHY]) == 0
    assert sync.stage("switch_index", "third").status == "refused"
    assert current() == first


def test_only_what_served_before_can_serve_again(sync: Sync) -> None:
    version = sync.run("first")["check_index"].facts["version"]
    with pytest.raises(DataError, match="served before, found .* current"):
        main(["use", str(version), *WHY])
    sync.write("owl.md", document("owl", "voles"))
    sync.up_to("check_index", "second")
    with connect() as connection:
        row = connection.execute("SELECT max(version) AS newest FROM index_versions").fetchone()
    assert row
    with pytest.raises(DataError, match="found .* checked"):
        main(["use", str(row["newest"]), *WHY])
    with pytest.raises(DataError, match="found none"):
        main(["use", "999999", *WHY])
    assert current() == version


@pytest.mark.parametrize("command", [["use", *WHY], ["list", "3"], ["use", "3", "--by", "ada"], ["drop", "3"]])
def test_a_wrong_command_changes_nothing(command: list[str]) -> None:
    with pytest.raises(OptionError):
        main(command)
