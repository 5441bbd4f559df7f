"""A base model in this process, with adapters attached to it, owned by one thread.

Reads a model folder (`tasks.models.fetch`). Adapters stay unmerged: the small steps of a fine-tune would be lost in the
rounding of bfloat16 weights, and two releases of one base model share its memory. All work on the model runs on one
thread, in order of arrival, so that two cores never serve two generations at once.

Fails with `ReleaseError` when the bytes are not those of the release, `ModelError` when the base model cannot be used.
"""

import logging
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tasks import models
from tasks.errors import ReleaseError
from tasks.serving.adapters import check_fits
from tasks.serving.base_files import digests, require_signed
from tasks.serving.language_model import Generated, Sampling, ends_of, load_tokenizer, window_of
from tasks.serving.refusals import TooLate
from tasks.serving.telling import Listener, Teller
from tasks.storage import Storage

log = logging.getLogger(__name__)

COLDEST = (
    1e-3  # below, the most likely token is taken: a quotient of less is infinite, and no caller may break a generation
)


class TransformersModel:
    """A loaded base model. Its methods may be called from any thread; the work is done on the model's own."""

    def __init__(self, reference: str, base_revision: str, folder: Path, threads: int) -> None:
        self.reference, self.base_revision = reference, base_revision
        self.files: Mapping[str, str] = digests(folder)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._attached: set[str] = set()
        self._threads = threads
        self._thread.submit(self._load, folder).result()

    def _load(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(self._threads)
        self.tokenizer: Any = load_tokenizer(self.reference, folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=fastest_type(), trust_remote_code=False, use_safetensors=True
        ).eval()
        self.window = window_of(self._model.config, self.tokenizer)
        self._ends = ends_of(self._model.generation_config, self.tokenizer)

    def attach(self, name: str, folder: Path) -> None:
        """Load the adapter in `folder` beside those already attached; requests in line before it go first."""
        self._thread.submit(self._attach, name, folder).result()

    def _attach(self, name: str, folder: Path) -> None:
        from peft import PeftModel

        if name in self._attached:
            return
        base = self._model.get_base_model() if self._attached else self._model
        check_fits(dict(base.named_modules()), folder)
        if self._attached:
            self._model.load_adapter(str(folder), adapter_name=name)
        else:
            self._model = PeftModel.from_pretrained(self._model, str(folder), adapter_name=name)
        self._model.eval()
        self._attached.add(name)

    def detach(self, name: str) -> None:
        """Drop an adapter once everything now in line is done. Returns at once."""
        self._thread.submit(self._detach, name).add_done_callback(_log_failure)

    def _detach(self, name: str) -> None:
        if name not in self._attached:
            return
        if self._attached == {name}:
            self._model = self._model.unload()
        else:
            if name in self._model.active_adapters:
                self._model.set_adapter(next(iter(self._attached - {name})))
            self._model.delete_adapter(name)
        self._attached.discard(name)

    def generate(
        self, adapter: str | None, token_ids: Sequence[int], sampling: Sampling, listener: Listener | None = None
    ) -> "Future[Generated]":
        """Put a generation in line; `adapter` None is the base model as it is.

        `listener` is told the text while it is made, and ends it early. One that is gone before its turn comes
        raises `TooLate`.
        """
        return self._thread.submit(self._generate, adapter, list(token_ids), sampling, listener or Listener())

    def _generate(self, adapter: str | None, token_ids: list[int], sampling: Sampling, listener: Listener) -> Generated:
        import torch

        if listener.gone:
            raise TooLate("expected the model to be free in time, found others before this request. Next: try again.")
        started = time.monotonic()
        teller = Teller(self._decoded, sampling.stop, listener)
        if adapter is None and self._attached:
            with self._model.disable_adapter():
                output = self._tokens(torch, token_ids, sampling, listener, teller)
        else:
            if adapter is not None and self._model.active_adapters != [adapter]:
                self._model.set_adapter(adapter)
            output = self._tokens(torch, token_ids, sampling, listener, teller)
        ended = teller.stopped or (bool(output) and output[-1] in self._ends)
        return Generated(
            text=teller.end(),
            prompt_tokens=len(token_ids),
            completion_tokens=len(output),
            finish_reason="stop" if ended else "length",
            seconds=time.monotonic() - started,
        )

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _tokens(
        self, torch: Any, token_ids: list[int], sampling: Sampling, listener: Listener, teller: Teller
    ) -> list[int]:
        choice: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if sampling.temperature >= COLDEST:
            choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
        if sampling.repetition_penalty > 1:
            from transformers import RepetitionPenaltyLogitsProcessor

            # Counted from the end of the prompt: an answer may repeat its documents, not itself.
            penalty = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty, prompt_ignore_length=len(token_ids))
            choice["logits_processor"] = [penalty]

        def look(ids: Any, _scores: Any, **_: Any) -> Any:
            teller.put(int(ids[0, -1]))
            return torch.tensor([teller.stopped or listener.gone])

        ids = torch.tensor([token_ids], dtype=torch.long)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=sampling.max_tokens,
                use_cache=True,
                eos_token_id=self._ends or None,
                pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0,
                stopping_criteria=[look],
                **choice,
            )
        tokens: list[int] = output[0, len(token_ids) :].tolist()
        return tokens

    def close(self) -> None:
        """Stop the model's thread after the work in line."""
        self._thread.shutdown(wait=False)


def fastest_type() -> Any:
    """Return bfloat16 where the processor multiplies it natively, else float32."""
    import torch

    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def load_base(
    reference: str,
    base_revision: str,
    cache: Path,
    endpoint_url: str | None,
    threads: int,
    files: Mapping[str, str] | None = None,
) -> TransformersModel:
    """Return the base model of a release. Raises ReleaseError when its bytes are not the ones released.

    `files`, where they are known, are the digests of all its files: the revision pins the weights among them alone.
    """
    # Converting a GGUF takes a gigabyte for a moment: a child process gives it back to the machine.
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as child:
        folder = child.submit(_fetch, reference, cache, endpoint_url).result()
    found = models.revision(reference, folder)
    if found != base_revision:
        raise ReleaseError(
            f"expected revision {base_revision} of {reference}, found {found}. "
            "Next: restore the model this release was made with, or release again."
        )
    if files is not None:
        require_signed(reference, folder, files)
    return TransformersModel(reference, base_revision, folder, threads)


def _fetch(reference: str, cache: Path, endpoint_url: str | None) -> Path:
    return models.fetch(reference, cache, Storage(endpoint_url))


def _log_failure(done: "Future[None]") -> None:
    if (error := done.exception()) is not None:
        log.error("an adapter could not be dropped: %r", error)
