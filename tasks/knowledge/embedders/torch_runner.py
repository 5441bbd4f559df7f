"""The backend `torch`: transformers on the CPU, or on a GPU where there is one.

Reads the weights of a folder, writes nothing. fp32 or bf16; int8 is OpenVINO's. Measured on the CPU: batches of more than
2,048 tokens leave the cache, smaller ones pay for calls. The budget on a GPU is not measured yet: no machine had one.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from tasks.knowledge.embedders.base import Batch
from tasks.knowledge.embedders.folder import ModelFolder, Pooling

if TYPE_CHECKING:
    from tasks.knowledge.embedders.base import Vectors

CPU_BUDGET, GPU_BUDGET = 2048, 65536


class TorchRunner:
    """A transformers model in one precision on one device."""

    multiple = 1  # torch does not compile for a shape

    def __init__(
        self, folder: ModelFolder, precision: Literal["fp32", "bf16"], threads: int | None, device: str
    ) -> None:
        import torch
        import transformers

        if threads is not None:
            torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        model: Any = transformers.AutoModel.from_pretrained(str(folder.path), dtype=dtype, trust_remote_code=False)
        self.budget = GPU_BUDGET if device == "cuda" else CPU_BUDGET
        self._device, self._pooling = device, folder.pooling
        self._model = model.to(device).eval()

    def run(self, batches: Iterable[Batch]) -> "Iterator[tuple[list[int], Vectors]]":
        """Yield the vectors of each batch, in order."""
        import torch

        for batch in batches:
            ids = torch.from_numpy(batch.ids).to(self._device)
            mask = torch.from_numpy(batch.mask).to(self._device)
            with torch.inference_mode():
                states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
                part = pooled(states, mask, self._pooling).cpu().numpy()
            yield batch.positions, part


def pooled(states: Any, mask: Any, pooling: Pooling) -> Any:
    """Return one vector of length 1 for each text, in fp32 whatever the precision of the states."""
    import torch

    states = states.float()
    if pooling == "mean":
        weights = mask.unsqueeze(-1).float()
        vectors = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    else:
        vectors = states[:, 0]
    return torch.nn.functional.normalize(vectors, dim=1)
