"""The assistant as it runs, its model on a server: real Postgres, S3, adapters and tokens; and a start beside a broken release."""

import json
import signal
from pathlib import Path

import pytest

from tasks.serving.upstream import served_base

from .served_llama import KEY, ServedLlama, running
from .test_serving_integration import ASK, World, served, until, world

__all__ = ["world"]
pytestmark = pytest.mark.integration


def test_a_model_on_a_server_answers_as_one_in_the_assistant_and_a_broken_release_is_stepped_over(
    world: World, tiny_llama: Path, tmp_path: Path
) -> None:
    world.bridge.up()
    llama = ServedLlama(tiny_llama, "teacher")
    good = world.release(adapter=0)
    broken = world.release(adapter=1, adapter_sha256="f" * 64)
    with served(world.environment) as (client, process):
        until(lambda: client.get("/readyz").status_code == 200)
        ready = client.get("/readyz").json()
        assert (ready["release"], ready["newest_release"], ready["fallback"]) == (good, broken, True)
        assert f"release {broken} did not load (ReleaseError: expected adapter files" in ready["problem"]
        here = client.post("/v1/chat/completions", json=ASK).json()
        assert here["millrace"]["release"] == good
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0

    with running(llama) as port:
        environment = world.environment | {
            "MILLRACE_GENERATION_URL": f"http://127.0.0.1:{port}/v1", "MILLRACE_GENERATION_KEY": KEY,
            "MILLRACE_GENERATION_ADAPTERS": str(tmp_path / "adapters"), "MILLRACE_ASSISTANT_PLACES": "40",
        }  # fmt: skip
        with served(environment) as (client, process):
            until(lambda: "serve the base model" in (client.get("/readyz").json()["problem"] or ""))
            llama.base = served_base(world.base_revision)
            llama._models[llama.base] = llama._models["teacher"]
            until(lambda: client.get("/readyz").status_code == 200)
            there = client.post("/v1/chat/completions", json=ASK).json()
            assert there["millrace"]["release"] == good and there["usage"] == here["usage"]
            assert there["choices"] == here["choices"]
            assert list(llama.adapters) == [f"millrace-{world.adapters[0][1][:16]}"]
            second = world.release(adapter=1)
            until(lambda: client.get("/readyz").json()["release"] == second)
            until(lambda: list(llama.adapters) == [f"millrace-{world.adapters[1][1][:16]}"])
            with client.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as answer:
                events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
            assert events[-1] == "[DONE]" and json.loads(events[-2])["choices"][0]["finish_reason"]
            assert 'millrace_assistant_places{kind="chat"} 40.0' in client.get("/metrics").text
            llama.fault = "500"
            failed = client.post("/v1/chat/completions", json=ASK)
            assert failed.status_code == 502 and failed.json()["error"]["code"] == "generation_failed"
            assert "secret" not in failed.text and KEY not in failed.text
            for _ in range(2):
                client.post("/v1/chat/completions", json=ASK)
            until(lambda: client.get("/readyz").json()["fallback"])
            ready = client.get("/readyz").json()
            assert (ready["release"], ready["newest_release"]) == (good, second)
            llama.fault = ""
            back = client.post("/v1/chat/completions", json=ASK).json()
            assert back["choices"] == here["choices"] and back["millrace"]["release"] == good
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
