"""A crash of promote or roll_back at any point leaves exactly one champion, and the next start makes all agree.

The stage runs in a process that SIGKILLs itself before the k-th thing it does (statements of SQL with their COMMITs, writes
to S3, requests to MLflow; between two of them nothing changes outside the process), for every k until it runs through. After
each kill the live release is the old one or the new whole one. For every state of the world that a kill leaves behind, ledger
and MLflow are reconciled and the stage is run again: one new row, never two.
"""

from typing import Any

import pytest

from tasks.registry import load_stage
from tasks.release.mirror import reconcile_mirrors
from tasks.stage import run_stage
from tasks.storage import Storage
from tests.release.crashing import World, in_a_process

pytestmark = pytest.mark.integration


def kill_everywhere(world: World, stage: str, run: str, after: dict[str, str], **options: str) -> list[str]:
    """Kill a stage everywhere; return what it does when nobody kills it."""
    manifest = f"{run}/{stage}/manifest.json"
    spare = Storage(world.house.settings.s3_endpoint_url)

    def start(fatal: int | None) -> list[str] | None:
        settings = world.settings
        return in_a_process(lambda: run_stage(load_stage(stage), settings, run, None, options), settings, spare, fatal)

    world.put_back(manifest)
    before, untouched = world.rows(), world.state(manifest)
    steps = start(None)
    assert steps is not None
    whole = world.rows()[0].parts()
    assert world.aliases_now() == after and len(world.rows()) == len(before) + 1
    tried: set[tuple[object, ...]] = set()
    seen = set()
    world.put_back(manifest)
    for fatal in range(1, len(steps) + 1):
        assert start(fatal) is None, f"{stage} went on after {steps[fatal - 1]}"
        rows, state = world.rows(), world.state(manifest)
        seen.add(len(rows))
        assert rows[-len(before) :] == before and len(rows) - len(before) in (0, 1), steps[fatal - 1]
        if len(rows) > len(before):
            assert rows[0].run == run and rows[0].parts() == whole, steps[fatal - 1]
        if state == untouched:
            continue
        if state not in tried:
            tried.add(state)
            reconcile_mirrors(world.settings)
            assert world.aliases_now() == (after if len(rows) > len(before) else world.aliases), steps[fatal - 1]
            assert start(None) is not None
            assert [row.run for row in world.rows()].count(run) == 1 and len(world.rows()) == len(before) + 1
            assert world.rows()[0].parts() == whole and world.aliases_now() == after
            assert world.house.storage.require_manifest(run, stage).facts["release"] == world.rows()[0].release
        world.put_back(manifest)
    assert seen == {len(before), len(before) + 1} and len(tried) > 3
    world.close()
    return steps


def test_a_kill_at_every_statement_leaves_one_champion(house: Any) -> None:
    house = house.with_settings(code_revision="tests")  # no call of git in every process, nor its answer in the parts
    house.index()
    house.promote(house.candidate(b"one").uri)
    run = house.run("promote_release")
    house.stage("propose", run, candidate=house.candidate(b"two", champion=1).uri)
    told = {"approved_by": "Ada", "reason": "better"}
    world = World(house, {"champion": "1", "candidate": "2"})
    steps = kill_everywhere(world, "promote", run, {"champion": "2", "previous": "1"}, **told)
    assert_complete(steps)

    house.stage("promote", run, **told)
    world = World(house, {"champion": "2", "previous": "1"})
    steps = kill_everywhere(world, "roll_back", house.run("roll_back"), {"champion": "1"}, **told, release="1")
    assert_complete(steps)


def assert_complete(steps: list[str]) -> None:
    """What must be among the points of death, or the hooks watch the wrong place."""
    text = "\n".join(steps)
    for part in ("SQL COMMIT", "INSERT INTO releases", "INSERT INTO release_mirrors", "S3 PutObject", "MLflow"):
        assert part in text, text
