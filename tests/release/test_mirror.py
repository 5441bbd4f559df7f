"""MLflow shows what the ledger says: whatever it lost, and whatever was changed in it by hand."""

from typing import Any

import pytest

from tasks.database import connect
from tasks.release import releases_tool
from tasks.release.mirror import reconcile_mirrors

pytestmark = pytest.mark.integration


def aliases(house: Any) -> dict[str, str]:
    found = house.mlflow().get_registered_model(house.settings.model_name).aliases
    return {name: str(version) for name, version in found.items()}


def in_mlflow(house: Any) -> list[str]:
    return [row.in_mlflow for row in releases_tool.read(house.settings)]


def test_a_version_that_mlflow_lost_holds_up_no_other_release(house: Any) -> None:
    name, client = house.settings.model_name, house.mlflow()
    house.index()
    house.promote(house.candidate(b"one").uri)
    with connect(house.url) as connection:
        connection.execute("DELETE FROM release_mirrors")  # it stands in the ledger, and was not mirrored
    client.delete_model_version(name, "1")
    two = house.promote(house.candidate(b"two", champion=1).uri)
    assert two.facts["mirror_problem"] is None
    assert aliases(house) == {"champion": "2"}
    assert in_mlflow(house) == ["shown", "lost"]
    three = house.promote(house.candidate(b"three", champion=2).uri)
    assert three.facts["mirror_problem"] is None and aliases(house) == {"champion": "3", "previous": "2"}

    # The live one itself: no alias rather than a wrong one, and the stage says so.
    house.stage("roll_back", house.run("roll_back"), release="2", reason="r", approved_by="Ada")
    assert aliases(house) == {"champion": "2"}
    client.delete_model_version(name, "2")
    client.set_registered_model_alias(name, "champion", "3")
    state = reconcile_mirrors(house.settings)
    assert state.problem is not None and "expected version 2" in state.problem and 4 in state.lost
    assert "champion" not in aliases(house) and in_mlflow(house)[0] == "lost"


def test_an_alias_that_was_changed_by_hand_is_put_back(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, client = house.settings.model_name, house.mlflow()
    house.index()
    house.promote(house.candidate(b"one").uri)
    house.promote(house.candidate(b"two", champion=1).uri)
    right = {"champion": "2", "previous": "1"}
    for alias, version in (("champion", "1"), ("previous", "2"), ("champion", None), ("previous", None)):
        if version is None:
            client.delete_registered_model_alias(name, alias)
        else:
            client.set_registered_model_alias(name, alias, version)
        assert aliases(house) != right
        assert reconcile_mirrors(house.settings).problem is None
        assert aliases(house) == right

    import requests

    asked: list[str] = []
    request = requests.Session.request

    def counted(session: Any, method: str, url: str, **options: Any) -> Any:
        asked.append(f"{method} {url}")
        return request(session, method, url, **options)

    monkeypatch.setattr(requests.Session, "request", counted)
    reconcile_mirrors(house.settings)
    assert len(asked) == 1, "where all is right it is one look"
