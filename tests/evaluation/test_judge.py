"""The judge: whom it prefers, how far it agrees with itself, and every way it can fail to answer."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from tasks.errors import ServiceUnavailable, SettingsError
from tasks.evaluation.judge import REPEATS, Comparison, Vote, ask_judge, endpoint, judged, parse, summary
from tasks.settings import load_settings
from tasks.training.endpoint import ChatEndpoint

LEAST = {"MILLRACE_DATABASE_URL": "postgresql://u@127.0.0.1/millrace", "MILLRACE_MLFLOW_TRACKING_URI": "http://m"}
Says = Callable[[dict[str, Any]], str | int]


class JudgeServer(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint whose reply `says` makes of what is compared; a number is a status without a reply."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.says: Says = lambda _asked: 500
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def judge(self) -> ChatEndpoint:
        settings = load_settings(
            LEAST
            | {"MILLRACE_JUDGE_URL": f"http://127.0.0.1:{self.server_port}/v1", "MILLRACE_JUDGE_MODEL": "j"}
            | {"MILLRACE_JUDGE_KEY": "k3y"}
        )
        found = endpoint(settings, wait=lambda _seconds: None)
        assert found is not None
        return found


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.add(self.headers["Authorization"])
        said = self.server.says(json.loads(body["messages"][1]["content"]))
        self.send_response(said if isinstance(said, int) else 200)
        self.end_headers()
        if isinstance(said, str):
            self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as server:
        yield server
        server.shutdown()


def better(word: str) -> str:
    return json.dumps({"better": word})


def honest(asked: dict[str, Any]) -> str:
    """Prefer the answer that says `good`, wherever it stands."""
    first, second = ("good" in asked[name] for name in ("first", "second"))
    return better("tie" if first == second else "first" if first else "second")


PAIRS = [
    Comparison("1", "q", "t", "a good answer", "another"),
    Comparison("2", "q", "t", "good too", "none"),
    Comparison("3", "q", "t", "worse", "good as it was"),
    Comparison("4", "q", "t", "as bad", "so bad"),
    Comparison("5", "q", "t", "the same", "the same"),
]


def test_an_honest_judge_is_believed_in_both_orders(server: JudgeServer) -> None:
    server.says = honest
    found = judged(server.judge, PAIRS, "champion", seed=1)
    assert {name: found.metrics[name] for name in ("judge_wins", "judge_ties", "judge_losses")} == {
        "judge_wins": 2, "judge_ties": 2, "judge_losses": 1,
    }  # fmt: skip
    assert found.metrics["judge_preference"] == pytest.approx(1 / 5)
    assert found.metrics["judge_preference_low"] < 1 / 5 < found.metrics["judge_preference_high"]
    assert found.metrics["judge_agreement_orders"] == found.metrics["judge_agreement_repeats"] == 1
    assert found.facts == {"model": "j", "against": "champion", "pairs": 5, "equal": 1, "votes": 4 * 2 * REPEATS}
    assert len(server.bodies) == 4 * 2 * REPEATS, "nobody is asked about equal answers"
    assert server.keys == {"Bearer k3y"}
    assert sum(json.loads(body["messages"][1]["content"])["first"] == "worse" for body in server.bodies) == REPEATS


def test_a_judge_that_prefers_the_first_is_found_out(server: JudgeServer) -> None:
    server.says = lambda _asked: better("first")
    found = judged(server.judge, PAIRS, "base", seed=1)
    assert found.metrics["judge_agreement_orders"] == 0, "equal answers, about which nobody is asked, are no agreement"
    assert found.metrics["judge_agreement_repeats"] == 1, "it is sure of what it says, and wrong"
    assert (found.metrics["judge_wins"], found.metrics["judge_ties"], found.metrics["judge_losses"]) == (0, 5, 0)
    assert found.metrics["judge_preference"] == 0


def test_what_cannot_be_read_is_counted_and_not_guessed(server: JudgeServer) -> None:
    server.says = lambda asked: honest(asked) if "good" in asked["first"] else "The second is better."
    found = judged(server.judge, PAIRS[:3], "base", seed=1)
    assert found.metrics["judge_unparsable"] == 3 * REPEATS
    assert found.metrics["judge_wins"] == found.metrics["judge_losses"] == 0, "one order alone judges nothing"
    assert "judge_preference" not in found.metrics
    assert "judge_agreement_orders" not in found.metrics
    assert found.metrics["judge_agreement_repeats"] == 1


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (better("first"), 1),
        (better("second"), -1),
        (better("tie"), 0),
        (f"```json\n{better('first')}\n```", 1),
        ("first", None),
        ('{"better": "First"}', None),
        ('{"better": 1}', None),
        ('{"better": ["first"]}', None),
        ('{"better": "first", "why": "longer"}', None),
        ('["better"]', None),
        (f"I think: {better('first')}", None),
        ("", None),
    ],
)
def test_only_the_json_that_was_asked_for_is_read(reply: str, expected: int | None) -> None:
    assert parse(reply) == expected


def test_a_judge_that_was_asked_about_nothing_agrees_with_nobody(server: JudgeServer) -> None:
    found = judged(server.judge, PAIRS[4:], "base", seed=1)
    assert (found.metrics["judge_ties"], found.facts["votes"], server.bodies) == (1, 0, [])
    assert not [name for name in found.metrics if "agreement" in name]


def test_votes_that_were_not_asked_for_are_left_out_of_both_agreements() -> None:
    one = [Vote("1", order, n, 1 if order else -1) for order in (True, False) for n in range(REPEATS)]
    one[0] = Vote("1", True, 0, 0)
    equal = [Vote("2", order, n, 0, asked=False) for order in (True, False) for n in range(REPEATS)]
    alone, both = summary(one, seed=1), summary(one + equal, seed=1)
    for name in ("judge_agreement_orders", "judge_agreement_repeats"):
        assert both[name] == alone[name] < 1
    assert both["judge_ties"] == alone["judge_ties"] + 1


def test_a_wavering_judge_agrees_with_itself_in_part() -> None:
    values = {True: [1, 1, 0], False: [1, -1, 0]}
    votes = [Vote("1", order, n, value) for order, found in values.items() for n, value in enumerate(found)]
    found = summary(votes, seed=1)
    assert found["judge_agreement_orders"] == pytest.approx(2 / 3)
    assert found["judge_agreement_repeats"] == pytest.approx(1 / 6)  # one pair of six: the two that said better first
    assert (found["judge_wins"], found["judge_ties"]) == (0, 1), "better in one order, a tie in the other"


def test_an_endpoint_that_is_away_is_tried_again_later(server: JudgeServer) -> None:
    with pytest.raises(ServiceUnavailable, match="MILLRACE_JUDGE_URL.*status 500 5 times"):
        ask_judge(server.judge, PAIRS[:1])


def test_a_judge_that_is_away_is_a_fact_and_no_fault(server: JudgeServer) -> None:
    found = judged(server.judge, PAIRS, "champion", seed=1)
    assert (found.rows, found.metrics) == ([], {})
    assert found.facts.pop("unavailable").startswith(
        "expected the judge to answer at MILLRACE_JUDGE_URL, found status 500"
    )
    assert found.facts == {"model": "j", "against": "champion", "pairs": 5, "equal": 1, "votes": 0}


def test_an_endpoint_that_refuses_is_bad_input(server: JudgeServer) -> None:
    server.says = lambda _asked: 401
    with pytest.raises(SettingsError, match="status 401") as caught:
        ask_judge(server.judge, PAIRS[:1])
    assert "k3y" not in str(caught.value)


def test_half_a_judge_is_bad_input_and_none_is_none() -> None:
    assert endpoint(load_settings(LEAST)) is None
    with pytest.raises(SettingsError, match="together"):
        endpoint(load_settings(LEAST | {"MILLRACE_JUDGE_MODEL": "j"}))
