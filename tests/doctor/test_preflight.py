"""The stage `preflight`: complete where all is well, bad input or an outage where not, and looked at anew each time."""

from collections.abc import Callable
from typing import Any

import pytest

from tasks.doctor.preflight import STAGE
from tasks.errors import ServiceUnavailable, SettingsError
from tasks.settings import Settings
from tasks.stage import run_stage
from tasks.storage import Storage

pytestmark = [pytest.mark.integration]


@pytest.fixture
def choose(stack: Any, stack_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    from tasks.database import migrate
    from tasks.settings import settings as process_settings

    migrate(stack.database_url)
    process_settings.cache_clear()  # the row of costs goes through the process's settings
    yield stack_settings
    process_settings.cache_clear()


def test_it_ends_complete_with_a_report(choose: Callable[..., Settings]) -> None:
    manifest = run_stage(STAGE, choose(), "s3://millrace/runs/doctor/complete", None, {})
    assert manifest.status == "complete"
    assert manifest.counts == {"ok": 8, "not_checked": 0}
    report = Storage(choose().s3_endpoint_url).get_json(manifest.outputs["report"])
    assert {line["status"] for line in report} == {"ok"}


def test_what_is_to_be_mended_ends_the_run_with_every_line(choose: Callable[..., Settings]) -> None:
    chosen = choose(base_model="package:no_such_package/x", mlflow_tracking_uri="http://127.0.0.1:9")
    with pytest.raises(SettingsError) as caught:
        run_stage(STAGE, chosen, "s3://millrace/runs/doctor/mend", None, {})
    text = str(caught.value)
    assert "expected everything a run needs, found 6 ok, 1 to mend, 1 without an answer" in text
    assert "mend  base model  expected an installed package" in text and "mend  registry " in text
    assert "mend  disk" not in text and text.endswith("Next: see each line.")


def test_a_service_away_is_tried_again(choose: Callable[..., Settings]) -> None:
    with pytest.raises(ServiceUnavailable):
        run_stage(STAGE, choose(mlflow_tracking_uri="http://127.0.0.1:9"), "s3://millrace/runs/doctor/away", None, {})


def test_an_earlier_look_vouches_for_nothing(choose: Callable[..., Settings]) -> None:
    run = "s3://millrace/runs/doctor/again"
    first = run_stage(STAGE, choose(), run, None, {})
    second = run_stage(STAGE, choose(), run, None, {})
    assert second.started_at > first.ended_at
    with pytest.raises(ServiceUnavailable):
        run_stage(STAGE, choose(mlflow_tracking_uri="http://127.0.0.1:9"), run, None, {})
    assert Storage(choose().s3_endpoint_url).read_manifest(first.uri) is None
