"""Restores on a real Postgres and S3: beside, in place, after kills; nothing is switched that is not whole."""

import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasks.backup import restore as module
from tasks.backup import switch
from tasks.backup.postgres import databases
from tasks.backup.restore import restore
from tasks.database import connect
from tasks.errors import BadInput, ManifestError, TryAgain

pytestmark = [pytest.mark.integration, pytest.mark.long]
# MLflow's server of the session is connected to its database: that one is restored in test_new_installation.py.
PARTS = ("airflow", "millrace", "objects")
KILL = """
import os, signal
from tasks.backup import catalogue, put_back, restore, switch
from tasks.backup.targets import FolderTarget
from tasks.settings import settings
def kill(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
{patch}
target = FolderTarget(__import__('pathlib').Path(os.environ['TARGET']))
restore.restore(settings(), target, catalogue.choose(target, None), 'replace', ('airflow', 'millrace', 'objects'))
"""
# Each ends the process at one step; what comes before it has happened.
POINTS = {
    "while the first database is filled": "restore._prove = kill",
    "between the databases": "real = restore._fill\n"
    "restore._fill = lambda s, t, b, d: kill() if d.name == 'millrace' else real(s, t, b, d)",
    "when all is restored and nothing switched": "switch.switch = kill",
    "inside the transaction of the switch": "real, seen = switch.rename, []\n"
    "def rename(*a):\n    real(*a); seen.append(a)\n    '_replaced_' in a[2] and len(seen) > 3 and kill()\nswitch.rename = rename",
    "after the switch": "restore.set_right = kill",
    "while objects are moved aside": "real = put_back._move_aside\n"
    "put_back._move_aside = lambda *a: (real(*a), kill())",
    "before the old databases get their last name": "switch.finish = kill",
    "between the last names of two databases": "real = switch.rename\n"
    "switch.rename = lambda *a: (real(*a), '_before_' in a[2] and kill())",
}


def ledger(place: Any) -> list[Any]:
    return place.rows("SELECT release, evidence_uri, index_version FROM releases ORDER BY release")


def beside(place: Any, word: str) -> list[str]:
    return sorted(name for name in place.databases() if place.url.rsplit("/", 1)[1] + f"_{word}_" in name)


def test_what_came_after_the_backup_gives_way_and_is_kept(place: Any) -> None:
    place.release(b"one")
    changed = place.put("datasets/changed", b"as it was")
    lost = place.put("datasets/lost", b"as it was")
    backup = place.backup()
    before, uris = ledger(place), place.uris()

    place.release(b"two")
    place.put("datasets/changed", b"otherwise")
    newer = place.put("datasets/newer", b"newer")
    place.storage.delete_prefix(lost)
    claims = {uri for uri in place.uris() - uris if uri.endswith("/manifest.json")}
    done = restore(place.settings, place.target, backup, "replace", PARTS)

    assert ledger(place) == before
    assert [place.storage.get_bytes(uri) for uri in (changed, lost)] == [b"as it was"] * 2
    assert claims
    aside = f"s3://{place.settings.s3_bucket}/aside/{backup.id}/"
    moved = {uri.replace(f"s3://{place.settings.s3_bucket}/", aside) for uri in (*claims, changed)}
    assert {uri for uri in place.uris() if uri.startswith(aside)} == moved
    assert done.objects.aside == len(moved)
    assert place.storage.exists(newer)
    # What was there stays, under another name, with its newer release.
    (old,) = beside(place, "before")
    assert place.rows("SELECT max(release) FROM releases", old) == [(2,)]
    assert {*beside(place, "restoring"), *beside(place, "restored"), *beside(place, "replaced")} == set()
    # The next release is a stage like any other: it repairs MLflow's aliases, and goes on counting.
    place.release(b"three")
    assert len(ledger(place)) == 2
    champion = place.mlflow().get_model_version_by_alias(place.settings.model_name, "champion")
    assert champion.tags["millrace.release"] == str(ledger(place)[-1][0])


@pytest.mark.parametrize("point", POINTS)
def test_a_restore_killed_anywhere_is_finished_by_the_same_command(place: Any, point: str) -> None:
    place.put("datasets/changed", b"as it was")
    backup = place.backup()
    with connect(place.url, vectors=False) as connection:
        connection.execute("INSERT INTO stage_costs (run, stage, status, started_at, ended_at, resource_seconds, host) "
                           "VALUES ('later', 's', 'complete', now(), now(), '{}', 'h')")  # fmt: skip
    place.put("datasets/changed", b"otherwise")
    place.put("runs/d/later/s/manifest.json", b"{}")
    killed = place.python(KILL.format(patch=POINTS[point]))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    costs = "SELECT count(*) FROM stage_costs"
    switched = list(POINTS).index(point) >= list(POINTS).index("after the switch")
    assert place.rows(costs) == [(0 if switched else 1,)]
    if not switched:
        assert place.storage.get_bytes(f"s3://{place.settings.s3_bucket}/datasets/changed") == b"otherwise"
    restore(place.settings, place.target, backup, "replace", PARTS)
    assert place.rows(costs) == [(0,)]
    assert place.storage.get_bytes(f"s3://{place.settings.s3_bucket}/datasets/changed") == b"as it was"
    assert not place.storage.exists(f"s3://{place.settings.s3_bucket}/runs/d/later/s/manifest.json")
    assert {*beside(place, "restoring"), *beside(place, "restored"), *beside(place, "replaced")} == set()
    assert len(beside(place, "before")) == 1  # restored once: the rerun did not begin anew


def test_tables_are_not_overwritten_unless_it_is_said(place: Any) -> None:
    backup = place.backup()
    before = place.databases()
    with pytest.raises(BadInput, match="expected empty databases, found tables in .*--into beside.*--into replace"):
        restore(place.settings, place.target, backup, "empty", PARTS)
    assert place.databases() == before


def test_the_ledger_is_not_turned_back_without_what_claims_to_know_it(place: Any) -> None:
    backup = place.backup()
    with pytest.raises(BadInput, match="Next: --only millrace,objects"):
        restore(place.settings, place.target, backup, "replace", ("millrace",))
    assert beside(place, "restored") == []


def test_beside_leaves_the_present_ones_alone_and_replace_goes_on_from_there(place: Any) -> None:
    place.quick_release()
    backup = place.backup()
    place.quick_release()
    done = restore(place.settings, place.target, backup, "beside", PARTS)
    assert len(ledger(place)) == 2
    (restored,) = beside(place, "restored")
    assert restored in done.databases
    assert place.rows("SELECT max(release) FROM releases", restored) == [(1,)]
    filled = []
    real = module._fill
    module._fill = lambda *arguments: filled.append(arguments)  # type: ignore[assignment]
    try:
        restore(place.settings, place.target, backup, "replace", PARTS)
    finally:
        module._fill = real
    assert (filled, len(ledger(place))) == ([], 1)


def test_whoever_is_connected_is_named_and_nothing_is_switched(place: Any) -> None:
    backup = place.backup()
    with psycopg.connect(place.url, application_name="the assistant"):
        with pytest.raises(TryAgain, match="1 x the assistant.*python -m local up --only postgres,s3"):
            restore(place.settings, place.target, backup, "replace", PARTS)
        assert beside(place, "replaced") == []
        assert len(beside(place, "restored")) == 1
    assert restore(place.settings, place.target, backup, "replace", PARTS).switched


def test_a_damaged_dump_is_not_restored(place: Any) -> None:
    backup = place.backup()
    with (Path(place.target.name) / "backups" / backup.id / "millrace.dump").open("r+b") as file:
        file.seek(2000)
        file.write(b"otherwise")
    with pytest.raises(ManifestError, match="the backup is damaged there"):
        restore(place.settings, place.target, backup, "replace", PARTS)
    assert {*beside(place, "replaced"), *beside(place, "restored"), *beside(place, "before")} == set()


def test_rows_that_are_missing_after_the_fill_are_noticed(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = place.backup()
    real = module.pg_restore

    def lossy(command: Any, database: Any, into: str, dump: Any, jobs: int) -> None:
        real(command, database, into, dump, jobs)
        with connect(database.administered(into), vectors=False) as connection:
            connection.execute("DELETE FROM dag_run" if database.name == "airflow" else "SELECT 1")

    monkeypatch.setattr(module, "pg_restore", lossy)
    with pytest.raises(ManifestError, match="public.dag_run: 0 of 1"):
        restore(place.settings, place.target, backup, "replace", PARTS)


def test_one_object_that_was_deleted_comes_back_and_nothing_else_changes(place: Any) -> None:
    place.quick_release()
    backup = place.backup()
    later = place.put("datasets/later", b"later")
    named = place.rows("SELECT evidence_uri FROM releases")[0][0]
    place.storage.delete_prefix(named)
    done = place.command("restore", "--from", place.target.name, "--only", "objects")
    assert (done.returncode, "1 put back" in done.stdout) == (0, True), done.stderr
    assert place.storage.exists(named)
    assert place.storage.exists(later)
    assert place.backup().status == "complete"
    bucket, key = named.removeprefix("s3://").split("/", 1)
    place.storage._client.put_object(Bucket=bucket, Key=key, Body=b"rotten")
    with pytest.raises(ManifestError, match="Next: delete those objects and repeat"):
        restore(place.settings, place.target, backup, "empty", ("objects",))


def test_a_backup_of_a_newer_revision_is_refused_before_anything_is_made(place: Any) -> None:
    backup = place.backup()
    newer = backup.model_copy(update={"migrations": backup.migrations | {"999_later.sql": "0" * 64}})
    with pytest.raises(BadInput, match="999_later.sql. Next: restore with revision"):
        restore(place.settings, place.target, newer, "replace", PARTS)


def test_other_bucket_names_are_refused(place: Any) -> None:
    backup = place.backup()
    other = place.with_settings(s3_bucket="another")
    with pytest.raises(BadInput, match="Next: make b-"):
        restore(other.settings, place.target, backup, "replace", PARTS)


def test_a_database_that_is_gone_altogether_is_made(place: Any) -> None:
    place.quick_release()
    backup = place.backup()
    before = ledger(place)
    with switch.server(databases(place.settings)["millrace"]) as connection:
        switch.drop(connection, place.url.rsplit("/", 1)[1])
    done = restore(place.settings, place.target, backup, "empty", ("millrace", "objects"))
    assert (ledger(place), done.kept) == (before, ())


def test_a_role_without_the_right_is_told_which_setting_names_another(place: Any, monkeypatch: Any) -> None:
    backup = place.backup()
    role = f"weak_{place.url.rsplit('_', 1)[1]}"
    with psycopg.connect(place.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'".encode())
    weak = place.url.replace(place.url.split("//")[1].split("@")[0], f"{role}:x")
    settings = type(place.settings).model_validate(place.settings.model_dump() | {"admin_database_url": weak})
    try:
        with pytest.raises(BadInput, match="MILLRACE_ADMIN_DATABASE_URL"):
            restore(settings, place.target, backup, "replace", PARTS)
    finally:
        with psycopg.connect(place.url, autocommit=True) as connection:
            connection.execute(f"DROP ROLE {role}".encode())
