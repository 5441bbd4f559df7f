"""A small model server for tests: real tokens of a tiny Llama behind the endpoints of vLLM that the assistant uses.

Written after vLLM's own `entrypoints/openai/{models,completion}/serving.py`: what it lists (`root`, `parent`), what it answers for
an adapter that is loaded already (400) or is not there (404), what its stream holds (a chunk a token, counts in each, a last one
without choices, `[DONE]`), that a repetition penalty counts the prompt too, and that a client that leaves ends the work. It decodes
by itself, not with the code under test. `fault` makes it fail.
"""

import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

KEY = "key-of-the-model-server"


class ServedLlama:
    """The model, its adapters, and what it was asked."""

    def __init__(self, folder: Path, base: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from tasks.serving.transformers_model import fastest_type

        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._new = lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=fastest_type()).eval()
        self.base, self.adapters = base, dict[str, str]()
        self._models: dict[str, Any] = {base: self._new()}
        self._guard = threading.Lock()
        self.fault, self.pause = "", 0.0
        self.asked: list[dict[str, Any]] = []
        self.tokens, self.aborted, self.most_at_once, self._at_once = 0, 0, 0, 0

    def cards(self) -> list[dict[str, Any]]:
        """Return what is listed."""
        base = {"id": self.base, "object": "model", "root": "/models/served", "parent": None, "max_model_len": 500}
        parent = "another-base" if self.fault == "parent" else self.base
        return [base, *({"id": n, "object": "model", "root": r, "parent": parent} for n, r in self.adapters.items())]

    def load(self, name: str, path: str) -> None:
        """Load an adapter."""
        from peft import PeftModel

        self._models[name] = PeftModel.from_pretrained(self._new(), path).eval()
        self.adapters[name] = path

    def unload(self, name: str) -> None:
        """Drop an adapter."""
        del self.adapters[name], self._models[name]

    def restart(self) -> None:
        """Forget adapters, as a process that begins anew."""
        self.adapters.clear()

    def write(self, body: dict[str, Any], left: threading.Event) -> Iterator[int]:
        """Yield the tokens of an answer."""
        import torch
        from transformers import RepetitionPenaltyLogitsProcessor

        made: queue.SimpleQueue[Any] = queue.SimpleQueue()
        model, ids = self._models[body["model"]], torch.tensor([body["prompt"]])

        def look(found: Any, _scores: Any, **_: Any) -> Any:
            self.tokens += 1
            made.put(int(found[0, -1]))
            time.sleep(self.pause)
            return torch.tensor([left.is_set()])

        def work() -> None:
            penalty = body["repetition_penalty"]
            with torch.inference_mode():
                model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=body["max_tokens"], do_sample=False,
                    temperature=None, top_p=None, top_k=None, eos_token_id=body["stop_token_ids"], pad_token_id=0,
                    stopping_criteria=[look],
                    logits_processor=[RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1 else [],
                )  # fmt: skip
            made.put(None)

        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            threading.Thread(target=work, daemon=True).start()
            while (token := made.get()) is not None:
                yield token
        finally:
            self._at_once -= 1

    def stream(self, body: dict[str, Any], left: threading.Event) -> Iterator[str]:
        """Yield the events of an answer."""
        ids: list[int] = []
        told, whole = "", ""
        reason = None
        for token in self.write(body, left):
            ids.append(token)
            whole = self.tokenizer.decode(ids, skip_special_tokens=True)
            places = [place for stop in body["stop"] if (place := whole.find(stop)) >= 0]
            whole = whole[: min(places)] if places else whole.rstrip("\ufffd")
            ended = bool(places) or token in body["stop_token_ids"]
            reason = "stop" if ended else "length" if len(ids) == body["max_tokens"] else None
            # As vLLM does, what may become a stop string is held back.
            held = max((len(stop) for stop in body["stop"]), default=1) - 1
            shown = whole if reason else whole[: max(len(told), len(whole) - held)]
            yield self.event([{"index": 0, "text": shown[len(told) :], "finish_reason": reason}], body, len(ids))
            told = shown
            if self.fault == "break" and len(ids) == 3:
                raise ConnectionResetError("broken for a test")
            if self.fault == "error event" and len(ids) == 3:
                yield f"data: {json.dumps({'error': {'message': 'CUDA error at secret', 'code': 500}})}\n\n"
                break
            if self.fault == "malformed" and len(ids) == 3:
                yield "data: {half an ev\n\n"
                break
            if self.fault == "no end" and len(ids) == 3:
                break
            if self.fault == "stall" and len(ids) == 3:
                left.wait(30)
                break
            if reason:
                yield self.event([], body, len(ids))
                break
        left.set()
        yield "data: [DONE]\n\n"

    def event(self, choices: list[dict[str, Any]], body: dict[str, Any], made: int) -> str:
        """Return one event."""
        count = {"prompt_tokens": len(body["prompt"]), "completion_tokens": made, "total_tokens": 0}
        return f"data: {json.dumps({'object': 'text_completion', 'choices': choices, 'usage': count})}\n\n"


def guard(request: Request) -> None:
    """Refuse who has no key."""
    if request.headers.get("authorization") != f"Bearer {KEY}":
        raise HTTPException(401, f"not {request.headers.get('authorization')}")


def app_of_llama(llama: ServedLlama) -> FastAPI:
    """Return the server's application."""
    app = FastAPI(dependencies=[Depends(guard)])

    def error(status: int, kind: str, message: str) -> JSONResponse:
        return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": llama.cards()}

    @app.post("/v1/load_lora_adapter")
    def load(body: dict[str, str]) -> Response:
        if llama.fault == "load":
            return error(500, "InternalServerError", "LoRA rank 64 is greater than max_lora_rank 16 at secret")
        if body["lora_name"] in llama.adapters:
            return error(400, "InvalidUserInput", "has already been loaded")
        if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
            return error(404, "NotFoundError", "no adapter found")
        llama.load(body["lora_name"], body["lora_path"])
        return PlainTextResponse("Success: LoRA adapter added successfully.")

    @app.post("/v1/unload_lora_adapter")
    def unload(body: dict[str, str]) -> Response:
        if body["lora_name"] not in llama.adapters:
            return error(404, "NotFoundError", "cannot be found")
        llama.unload(body["lora_name"])
        return PlainTextResponse("Success: LoRA adapter removed successfully.")

    @app.post("/v1/completions")
    def completions(body: dict[str, Any]) -> Response:
        llama.asked.append(body)
        if llama.fault.isdecimal():
            return error(int(llama.fault), "Error", f"secret words of the server for {KEY}")
        if body["model"] not in {card["id"] for card in llama.cards()}:
            return error(404, "NotFoundError", f"The model `{body['model']}` does not exist.")
        left = threading.Event()

        async def events() -> Any:
            from anyio.to_thread import run_sync

            stream = llama.stream(body, left)
            try:
                while (event := await run_sync(next, stream, None)) is not None:
                    yield event
            finally:
                if not left.is_set():
                    llama.aborted += 1
                left.set()

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


@contextmanager
def running(llama: ServedLlama, port: int = 0) -> Iterator[int]:
    """Serve on a port of 127.0.0.1; yield it."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        config = uvicorn.Config(app_of_llama(llama), log_config=None, timeout_graceful_shutdown=3)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
