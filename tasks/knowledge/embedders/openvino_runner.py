"""The backend `openvino`: the same weights compiled for this CPU, faster than torch; and int8.

Reads the weights of a folder, once: the converted model is kept in the model cache under a key of weights, versions and
precision, made by one process while others wait (tasks.model_cache). A process that finds it there needs neither torch nor
transformers: less memory, and it is ready in a second. Writes nothing else, and reports to nobody: the libraries'
telemetry is off. Fails with `ModelError` for a model that OpenVINO cannot convert.
"""

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks import model_cache
from tasks.errors import ModelError
from tasks.knowledge.embedders.base import Batch
from tasks.knowledge.embedders.folder import ModelFolder
from tasks.knowledge.embedders.quantisation import openvino, quantise

if TYPE_CHECKING:
    from tasks.knowledge.embedders.base import Vectors

log = logging.getLogger(__name__)
_CONVERSION = 1  # of this module; raise it when the converted model changes
_MODEL = "model.xml"


class OpenVinoRunner:
    """A compiled model with one inference stream for each thread."""

    budget = 2048
    multiple = 16  # a new shape costs: few widths, and the batch of each is the same but for the last

    def __init__(
        self,
        folder: ModelFolder,
        digest: str,
        precision: Literal["fp32", "bf16", "int8"],
        threads: int | None,
        cache: Path,
    ) -> None:
        path = converted(folder, digest, precision, cache)
        count = threads or len(os.sched_getaffinity(0))
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": count,
            "NUM_STREAMS": count,
        }
        self._model = compiled(path, tuple(options.items()))
        self._streams = count

    def run(self, batches: Iterable[Batch]) -> "Iterator[tuple[list[int], Vectors]]":
        """Yield the vectors of each batch, in order; as many batches are under way as there are streams."""
        idle = [self._model.create_infer_request() for _ in range(self._streams)]
        under_way: deque[tuple[Any, Batch]] = deque()
        for batch in batches:
            if not idle:
                yield self._finished(under_way, idle)
            request = idle.pop()
            # The request reads the arrays while it runs: the batch is kept until it is done.
            request.start_async({"input_ids": batch.ids, "attention_mask": batch.mask}, share_inputs=True)
            under_way.append((request, batch))
        while under_way:
            yield self._finished(under_way, idle)

    @staticmethod
    def _finished(under_way: deque[tuple[Any, Batch]], idle: list[Any]) -> "tuple[list[int], Vectors]":
        request, batch = under_way.popleft()
        request.wait()
        part: Vectors = request.get_output_tensor().data.copy()
        idle.append(request)
        return batch.positions, part


def compiled(path: Path, options: tuple[tuple[str, str | int], ...]) -> Any:
    """Return the model of a file, ready to run on this CPU."""
    return openvino().Core().compile_model(str(path), "CPU", dict(options))


def converted(folder: ModelFolder, digest: str, precision: Literal["fp32", "bf16", "int8"], cache: Path) -> Path:
    """Return the folder's model as OpenVINO reads it, converting it once. bf16 is a way to run fp32's file."""
    key = f"openvino-{digest}-{folder.pooling}-{_CONVERSION}-{version('openvino')}"
    plain = model_cache.once(cache, f"{key}-fp32", lambda target: _convert(folder, target))
    if precision != "int8":
        return plain / _MODEL
    name = f"{key}-nncf-{version('nncf')}-int8"
    return model_cache.once(cache, name, lambda target: quantise(folder, plain / _MODEL, target / _MODEL)) / _MODEL


def _convert(folder: ModelFolder, target: Path) -> None:
    """Write the transformer with pooling and normalisation, for any number and length of texts."""
    ov = openvino()
    import torch
    import transformers

    from tasks.knowledge.embedders.torch_runner import pooled

    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.AutoModel.from_pretrained(str(folder.path), dtype=torch.float32, trust_remote_code=False)

    class Pooled(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return pooled(states, attention_mask, folder.pooling)

    example = torch.ones((2, 8), dtype=torch.int64)
    shapes = [(name, [-1, -1], ov.Type.i64) for name in ("input_ids", "attention_mask")]
    try:
        made = ov.convert_model(
            Pooled().eval(), example_input={"input_ids": example, "attention_mask": example}, input=shapes
        )
    except RuntimeError as error:
        raise ModelError(
            f"expected a model that OpenVINO can convert in {folder.path.name}, found: {str(error)[:300]}. "
            "Next: set MILLRACE_EMBEDDER_BACKEND=torch."
        ) from error
    ov.save_model(made, str(target / _MODEL), compress_to_fp16=False)
    log.info("converted %s to OpenVINO", folder.path.name)
