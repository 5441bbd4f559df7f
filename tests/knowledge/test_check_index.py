"""What `check_index` does where the current version cannot be measured beside the new one."""

import pytest

from tasks.database import connect
from tasks.errors import ServiceUnavailable
from tasks.knowledge import check_index
from tasks.storage import Storage
from tests.knowledge.syncing import Sync, current

pytestmark = pytest.mark.integration


@pytest.fixture
def rebuilt(sync: Sync) -> Sync:
    """A second sync up to the check, whose base was made with an embedder that is gone."""
    sync.run("first")
    with connect() as connection:
        connection.execute("UPDATE index_versions SET embedder = 'package:no_such_package/model@0123+fp32'")
    sync.write("mole.md", "# The mole\n\nThe mole digs tunnels and hunts worms in the dark.")
    sync.up_to("index_documents", "second")
    return sync


def test_a_current_version_that_cannot_be_measured_holds_the_new_one(rebuilt: Sync) -> None:
    before = current()
    refused = rebuilt.stage("check_index", "second")
    assert refused.status == "refused"
    assert f"expected version {before} to be measured too, found: expected" in str(refused.reason)
    assert "no_such_package" in str(refused.reason)
    assert "confirm_unmeasured=yes" in str(refused.reason)
    assert current() == before


def test_it_goes_on_when_a_person_says_so_and_tells_why(rebuilt: Sync) -> None:
    done = rebuilt.stage("check_index", "second", confirm_unmeasured="yes")
    assert done.status == "complete"
    storage = Storage(rebuilt.environment["MILLRACE_S3_ENDPOINT_URL"])
    report = storage.get_json(done.outputs["report"])
    assert "no_such_package" in report["previous_unmeasured"]
    assert report["differences"] is None and report["reasons"] == []


def test_an_embedder_that_does_not_answer_is_asked_again_unless_confirmed(
    rebuilt: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, base = check_index._measured, current()

    def away(context, version, *rest):  # type: ignore[no-untyped-def]
        if version.version == base:
            raise ServiceUnavailable("expected an answer, found none. Next: retry.")
        return real(context, version, *rest)

    monkeypatch.setattr(check_index, "_measured", away)
    with pytest.raises(ServiceUnavailable):
        rebuilt.stage("check_index", "second")
    assert rebuilt.stage("check_index", "second", confirm_unmeasured="yes").status == "complete"
