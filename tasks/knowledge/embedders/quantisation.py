"""A converted model in int8: post-training quantisation (NNCF) of weights and activations.

Reads an OpenVINO model and the language reference that comes with Python, of which always the same pieces calibrate it;
writes the quantised model. A few layers stay in fp32: those that lead from a block's wide inner layer back, where
single activations are a hundred times the others, so that int8 has no steps left for these. Measured on the demo's embedder
and 384 passages: keeping the worst of its six shares 0.955 of the nearest ten with fp32 instead of 0.943.
"""

import contextlib
import io
import logging
import math
import random
import sys
from pathlib import Path
from typing import Any

from tasks.knowledge.embedders.folder import ModelFolder

log = logging.getLogger(__name__)
CALIBRATION_TEXTS, CALIBRATION_LENGTHS = 120, (100, 300, 900)  # characters
_KEPT_SHARE = 1 / 6  # of the layers that lead back
_PROBED_TEXTS = 24


def openvino() -> Any:
    """Return openvino without its telemetry, which would send what was converted to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: as if it were not installed
    import openvino as module

    return module


def quantise(folder: ModelFolder, plain: Path, target: Path) -> None:
    """Write the model of `plain` in int8."""
    ov = openvino()
    import nncf

    nncf.set_log_level(logging.ERROR)
    texts = calibration(folder)
    kept = sensitive_layers(ov, plain, texts[:_PROBED_TEXTS])
    with contextlib.redirect_stdout(io.StringIO()):  # it draws progress bars
        made = nncf.quantize(
            ov.Core().read_model(str(plain)),
            nncf.Dataset(texts),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=CALIBRATION_TEXTS,
            ignored_scope=nncf.IgnoredScope(names=kept),
        )
    ov.save_model(made, str(target), compress_to_fp16=False)
    log.info("quantised %s to int8, but for %d layers", folder.path.name, len(kept))


def sensitive_layers(ov: Any, plain: Path, texts: list[dict[str, Any]]) -> list[str]:
    """Return the names of the layers whose inputs are the least even, among those that lead to fewer dimensions."""
    import numpy

    model = ov.Core().read_model(str(plain))
    layers = [operation for operation in model.get_ordered_ops() if _leads_back(operation)]
    if not layers:
        return []
    model.add_outputs([layer.input_value(0) for layer in layers])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    largest, squares = numpy.zeros(len(layers)), numpy.zeros(len(layers))
    for text in texts:
        found = compiled(text)
        inputs = [numpy.asarray(found[place], dtype=numpy.float64) for place in range(1, len(layers) + 1)]
        largest = numpy.maximum(largest, [abs(values).max() for values in inputs])
        squares += [(values**2).mean() for values in inputs]
    unevenness = largest / numpy.sqrt(squares / len(texts))
    worst = numpy.argsort(-unevenness)[: math.ceil(len(layers) * _KEPT_SHARE)]
    return [str(layers[place].get_friendly_name()) for place in sorted(worst)]


def _leads_back(operation: Any) -> bool:
    """Tell whether an operation multiplies by a matrix of weights that has fewer rows (outputs) than columns (inputs)."""
    if operation.get_type_name() != "MatMul":
        return False
    shape = operation.input_value(1).get_partial_shape()
    if not operation.get_attributes().get("transpose_b") or shape.is_dynamic or len(shape) != 2:
        return False
    outputs, inputs = shape.to_shape()
    return bool(outputs < inputs)


def calibration(folder: ModelFolder) -> list[dict[str, Any]]:
    """Return pieces of the language reference, short and long, as the model takes them."""
    from pydoc_data.topics import topics

    import numpy

    chance = random.Random(1)
    texts = [text for _name, text in sorted(topics.items())]
    found = []
    for number in range(CALIBRATION_TEXTS):
        text = chance.choice(texts)
        length = CALIBRATION_LENGTHS[number % len(CALIBRATION_LENGTHS)]
        start = chance.randrange(max(1, len(text) - length))
        prompt = folder.prompts["document"]
        ids = folder.tokenizer.encode(prompt + text[start : start + length]).ids[: folder.max_tokens]
        found.append(
            {
                "input_ids": numpy.array([ids], dtype=numpy.int64),
                "attention_mask": numpy.ones((1, len(ids)), dtype=numpy.int64),
            }
        )
    return found
