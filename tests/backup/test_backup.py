"""Backups of a real Postgres, S3 and MLflow: what is in them, what is found to be wrong, what is kept."""

import io
import signal
import threading
from pathlib import Path
from typing import Any

import boto3
import pytest

from tasks.backup import catalogue, make, objects
from tasks.backup.check import verify_backup
from tasks.backup.lock import alone
from tasks.backup.store import ObjectStore
from tasks.backup.targets import BucketTarget, FolderTarget, open_target
from tasks.contracts import Manifest
from tasks.errors import BadInput, SettingsError, TryAgain

pytestmark = pytest.mark.integration


def only_key(place: Any, start: str) -> Path:
    """Return the one file of the target whose key starts so."""
    (key,) = place.target.keys(start)
    return Path(place.target.name) / key


def test_the_second_backup_copies_only_what_is_new(place: Any) -> None:
    release = place.quick_release()
    first = place.backup()
    assert (first.status, first.live_release) == ("complete", release)
    assert set(place.held(first)) == place.uris()
    assert first.counts["copied"] == len(place.contents())
    second = place.backup()
    assert (second.counts["copied"], second.counts["objects"]) == (0, first.counts["objects"])
    place.put("datasets/new/rows.jsonl", b"new")
    place.put("datasets/same/rows.jsonl", b"new")
    third = place.backup()
    assert (third.counts["copied"], third.counts["copied_bytes"]) == (1, 3)
    assert third.counts["objects"] == first.counts["objects"] + 2
    assert verify_backup(place.settings, place.target, third) == []
    shown = place.rows("SELECT id, status, problems FROM backups ORDER BY ended_at")
    assert shown == [(made.id, "complete", 0) for made in (first, second, third)]


def test_the_command_backs_up_into_a_bucket_verifies_and_lists(place: Any) -> None:
    place.quick_release()
    bucket = place.settings.s3_bucket + "-backups"
    boto3.session.Session().client("s3", endpoint_url=place.settings.s3_endpoint_url).create_bucket(Bucket=bucket)
    there = f"s3://{bucket}/millrace"
    done = place.command("backup", "--to", there, "--verify", "--keep", "2")
    assert (done.returncode, "every byte read" in done.stdout) == (0, True), done.stderr
    password = place.url.split(":")[2].split("@")[0]
    assert password not in done.stdout + done.stderr
    listed = place.command("backups", "--at", there).stdout
    assert "1 backups at" in listed
    assert "complete, verified  release 1" in listed
    assert place.rows("SELECT verified_at IS NOT NULL FROM backups") == [(True,)]


def damage_content(place: Any) -> None:
    path = sorted(Path(place.target.name).joinpath("objects").rglob("*"))[-1]
    path.write_bytes(path.read_bytes() + b"x")


def damage_dump(place: Any) -> None:
    path = next(Path(place.target.name).rglob("millrace.dump"))
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def damage_list(place: Any) -> None:
    path = next(Path(place.target.name).rglob("objects.jsonl"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def lose_content(place: Any) -> None:
    next(path for path in Path(place.target.name).joinpath("objects").rglob("*") if path.is_file()).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_content, "expected sha256"),
        (damage_dump, "millrace.dump"),
        (damage_list, "objects.jsonl"),
        (lose_content, "found nothing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_damaged_or_missing_in_a_backup_is_named(place: Any, damage: Any, said: str) -> None:
    place.put("datasets/one", b"rows")
    made = place.backup()
    assert verify_backup(place.settings, place.target, made) == []
    damage(place)
    problems = verify_backup(place.settings, place.target, made)
    assert len(problems) == 1
    assert said in problems[0]
    if damage in {damage_content, lose_content}:
        # The damaged file is deleted, as the problem says: the next backup copies it anew.
        for key in place.contents():
            place.target.delete(key) if key in problems[0] else None
    after = place.backup()
    assert verify_backup(place.settings, place.target, after) == []
    assert (after.counts["copied"] > 0) == (damage in {damage_content, lose_content})


def test_an_installation_that_lost_an_object_is_told_and_the_backup_is_no_good_one(place: Any) -> None:
    place.release(b"one")
    good = place.backup()
    named = place.rows("SELECT evidence_uri FROM releases")[0][0]
    place.storage.delete_prefix(named)
    other = next(uri for uri in place.uris() if uri.endswith("held_out.jsonl"))
    bucket, key = other.removeprefix("s3://").split("/", 1)
    client = boto3.session.Session().client("s3", endpoint_url=place.settings.s3_endpoint_url)
    client.put_object(Bucket=bucket, Key=key, Body=b"rotten", Metadata={"sha256": "0" * 64})
    made = place.backup()
    assert made.status == "damaged"
    text = " ".join(made.problems)
    assert f"the ledger names {named}" in text
    assert f"{other} has sha256" in text
    assert "which has" in text
    assert catalogue.choose(place.target, None).id == good.id
    done = place.command("backup", "--to", place.target.name)
    assert (done.returncode, "not a good one" in done.stderr) == (2, True)


def test_old_backups_go_and_shared_contents_and_the_last_verified_one_stay(place: Any) -> None:
    place.put("datasets/shared", b"shared")
    place.put("datasets/first", b"first")
    first = place.backup()
    assert verify_backup(place.settings, place.target, first) == []
    place.storage.delete_prefix(f"s3://{place.settings.s3_bucket}/datasets/first")
    others = []
    for number in range(3):
        place.put(f"datasets/{number}", str(number).encode())
        others.append(place.backup())
        place.storage.delete_prefix(f"s3://{place.settings.s3_bucket}/datasets/{number}")
    before = place.contents()
    gone, contents = catalogue.retire(place.target, 1)
    assert gone == [others[1].id, others[0].id]
    assert contents == 2
    assert len(before - place.contents()) == 2
    assert [made.id for made in catalogue.finished(place.target)] == [others[2].id, first.id]
    assert verify_backup(place.settings, place.target, first) == []
    assert verify_backup(place.settings, place.target, others[2]) == []


def test_a_backup_killed_in_the_middle_is_none_and_the_next_uses_what_it_copied(place: Any) -> None:
    for number in range(20):
        place.put(f"datasets/{number}", str(number).encode())
    killed = place.python(
        "import os, signal; from tasks.backup import targets; from tasks.__main__ import main\n"
        "real, seen = targets.FolderTarget.put, []\n"
        "def put(self, key, source):\n"
        "    real(self, key, source); seen.append(key)\n"
        "    sum(key.startswith('objects/') for key in seen) >= 8 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "targets.FolderTarget.put = put; main(['backup', '--to', os.environ['TARGET']])"
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = len(place.contents())
    assert left >= 8
    assert catalogue.finished(place.target) == []
    assert len(catalogue.identifiers(place.target)) == 1
    made = place.backup()  # the lock of the killed one is gone with its connection
    assert made.counts["copied"] == 20 - left
    assert list(catalogue.identifiers(place.target)) == [made.id]
    assert verify_backup(place.settings, place.target, made) == []


def test_a_stage_that_begins_again_while_its_outputs_are_copied_is_left_out(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [f"s3://{place.settings.s3_bucket}/runs/writer/{name}" for name in ("calm", "torn")]
    for run in runs:
        place.storage.write_manifest(manifest(run, place.storage.put_rows(f"{run}/write/rows.jsonl", [{"n": 1}])))
    real = ObjectStore.read

    def read(self: ObjectStore, uri: str) -> Any:
        opened = real(self, uri)
        if uri == f"{runs[1]}/write/manifest.json":
            place.storage.delete_prefix(uri)
            place.storage.put_rows(f"{runs[1]}/write/rows.jsonl", [{"n": 2}])
        return opened

    monkeypatch.setattr(objects, "_THREADS", 1)
    monkeypatch.setattr(ObjectStore, "read", read)
    made = place.backup()
    assert (made.status, made.counts["left_out"]) == ("complete", 1), made.problems
    held = {uri for uri in place.held(made) if uri.endswith("/manifest.json")}
    assert held == {f"{runs[0]}/write/manifest.json"}


def test_a_backup_while_writers_write_holds_together(place: Any) -> None:
    place.quick_release()
    stop = threading.Event()
    failed: list[BaseException] = []

    def keep_writing(writer: int) -> None:
        storage, count = place.storage, 0
        try:
            while not stop.is_set():
                count += 1
                run = f"s3://{place.settings.s3_bucket}/runs/writer/{writer}-{count % 5}"
                # As a stage does: the claim of an earlier attempt goes, outputs are overwritten, the claim comes last.
                storage.delete_prefix(f"{run}/write/manifest.json")
                rows = storage.put_rows(f"{run}/write/rows.jsonl", [{"writer": writer, "count": count}])
                storage.write_manifest(manifest(run, rows))
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=keep_writing, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        made = [place.backup() for _attempt in range(3)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert [backup.problems for backup in made] == [()] * 3
    assert sum(backup.counts["left_out"] + backup.counts["vanished"] for backup in made) > 0
    assert verify_backup(place.settings, place.target, made[-1]) == []


def manifest(run: str, rows: Any) -> Manifest:
    return Manifest(
        stage="write", run=run, status="complete", fingerprint="f", outputs={"rows": rows}, code_revision="c", host="h",
        started_at="2026-01-01T00:00:00Z", ended_at="2026-01-01T00:00:00Z",
    )  # fmt: skip


def test_nothing_claims_a_release_that_the_dumped_ledger_lacks(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases are made between all steps of the backup, where they could tear it."""
    place.release(b"first")
    real_claims, real_dump = objects.claims, make._dump

    def release_index() -> None:
        place.index()
        place.promote()

    def claims(*arguments: Any) -> Any:
        release_index()
        found = real_claims(*arguments)
        release_index()
        return found

    def dump(settings: Any, target: Any, backup: str, database: Any) -> Any:
        made = real_dump(settings, target, backup, database)
        release_index()
        return made

    monkeypatch.setattr(objects, "claims", claims)
    monkeypatch.setattr(make, "_dump", dump)
    made = place.backup()
    assert made.status == "complete", made.problems
    # first, after airflow, before and after the claims: in the dump. After millrace and after mlflow: not.
    assert (made.live_release, place.rows("SELECT max(release) FROM releases")) == (4, [(6,)])
    claimed = []
    for uri in place.held(made):
        if "/promote/manifest.json" in uri:
            claimed.append(place.storage.read_manifest(uri).facts["release"])
    assert sorted(claimed) == [1, 2, 3]
    assert made.counts["left_out"] > 0


def test_one_at_a_time_and_not_beside_housekeeping(place: Any) -> None:
    with alone(place.url, "this test"):
        with pytest.raises(TryAgain, match="a backup, a restore or housekeeping at work"):
            place.backup()
        with pytest.raises(TryAgain, match="housekeeping to have the buckets"):
            place.stage("retire", place.run("housekeeping"))
        assert place.command("backup", "--to", place.target.name).returncode == 75
    assert place.backup().status == "complete"


def test_a_place_that_would_be_lost_with_the_bucket_is_refused(place: Any, stack: Any) -> None:
    with pytest.raises(BadInput, match="expected a bucket of its own for backups"):
        open_target(place.settings, f"s3://{place.settings.s3_bucket}/backups")
    with pytest.raises(BadInput, match="outside the embedded stack"):
        open_target(place.settings, str(stack.folder / "backups"))
    place.backup()
    other = place.settings.model_copy(update={"s3_bucket": "another"})
    with pytest.raises(BadInput, match="found those of"):
        catalogue.claim_target(place.target, other.s3_bucket)


def test_tools_older_than_the_server_are_refused_with_the_package_to_install(place: Any) -> None:
    from local.postgres import binaries

    old = binaries().parents[1] / "pginstall" / "bin"
    done = place.with_settings(postgres_tools=old)
    with pytest.raises(SettingsError, match="pg_dump of Postgres 18 or newer.*found 16.*postgresql-client-18"):
        make.make_backup(done.settings, place.target)
    none = place.with_settings(postgres_tools=Path("/nowhere"))
    with pytest.raises(SettingsError, match="expected pg_dump in /nowhere"):
        make.make_backup(none.settings, place.target)


@pytest.mark.parametrize(
    ("name", "value", "code", "said"),
    [
        ("MILLRACE_AIRFLOW_DATABASE_URL", "mysql://x", 2, "expected the URL of the database airflow"),
        ("MILLRACE_AIRFLOW_DATABASE_URL", "postgresql://u:p@127.0.0.1:9/airflow", 2, "three databases on one server"),
        ("MILLRACE_S3_BUCKET", "no-such-bucket", 2, "expected a bucket no-such-bucket"),
        ("MILLRACE_BACKUP_BUCKETS", "no-such-bucket", 2, "expected a bucket no-such-bucket"),
    ],
)
def test_wrong_settings_are_told(place: Any, name: str, value: str, code: int, said: str) -> None:
    place.environment |= {name: value}
    done = place.command("backup", "--to", place.target.name)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert ":p@" not in done.stderr


def test_a_database_that_is_away_is_to_be_tried_again(place: Any) -> None:
    for name in ("MILLRACE_DATABASE_URL", "MILLRACE_AIRFLOW_DATABASE_URL"):
        place.environment[name] = "postgresql://u:p@127.0.0.1:9/millrace"
    assert place.command("backup", "--to", place.target.name).returncode == 75


def test_a_full_disk_is_told(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    full = FolderTarget(Path("/dev/full"))
    with pytest.raises(BadInput, match="Next: "):
        make.make_backup(place.settings, full)


class Upload:
    """An object store that only notes how it was asked to write."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def upload(self, uri: str, source: Any, extra: dict[str, str]) -> None:
        self.asked.append((uri, extra))


@pytest.mark.parametrize("key", [None, "arn:aws:kms:eu-central-1:111122223333:key/one"])
def test_objects_are_encrypted_with_the_key_that_is_set(key: str | None) -> None:
    store = Upload()
    BucketTarget(store, "s3://other/place/", key).put("objects/ab", io.BytesIO(b"x"))  # type: ignore[arg-type]
    expected = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}
    assert store.asked == [("s3://other/place/objects/ab", expected)]
