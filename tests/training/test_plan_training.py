"""The token report, and everything that must fail before a GPU is asked for."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import DataError, ModelError, RecipeError
from tasks.training import fit, flops
from tasks.training.estimate import Estimate
from tasks.training.flops import token_flops
from tasks.training.plan_training import make_report, measured, ranks, table
from tasks.training.recipes import Recipe, load_recipe
from tests.tiny_model import make_adapter, make_model, make_tokenizer, pair

SMOKE = load_recipe("smoke_cpu")


def recipe(part: str, found: Recipe = SMOKE, **changes: Any) -> Recipe:
    return found.model_copy(update={part: getattr(found, part).model_copy(update=changes)})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def test_the_report_counts_what_is_cut_and_how_full_batches_are() -> None:
    lengths = [10, 20, 30, 40, 100, 64]
    report = make_report(lengths, recipe("optimisation", rows_per_batch=2, rows_per_step=4, epochs=3), world=2)
    assert (report.rows, report.min_tokens, report.median_tokens, report.max_tokens) == (6, 10, 35, 100)
    assert (report.truncated, report.truncated_tokens) == (1, 36)
    assert report.fill == pytest.approx((10 + 20 + 30 + 40 + 64 + 64) / (2 * 20 + 2 * 40 + 2 * 64))
    assert (report.packs, report.steps, report.tokens) == (None, 2 * 3, 3 * 228)


def test_packs_are_the_rows_of_the_steps() -> None:
    report = make_report([32] * 12, recipe("optimisation", packing=True, rows_per_step=2, epochs=1), world=1)
    assert (report.packs, report.fill, report.steps) == (6, 1.0, 3)


def test_no_rows_are_bad_input() -> None:
    with pytest.raises(DataError, match="found none"):
        make_report([], SMOKE, 1)


def test_the_table_says_what_it_rests_on() -> None:
    report = make_report([10, 20, 100], SMOKE, 2)
    text = "\n".join(table(report, Estimate(7200, 4.0, None, "a guess"), SMOKE, {"train": 3, "held_out": 1}))
    for told in ("3 train, 1 held_out", "1 rows (33.3%", "about 2.0 h, by a guess", "set MILLRACE_GPU_HOUR_PRICE"):
        assert told in text
    assert "12.50" in "\n".join(table(report, Estimate(7200, 4.0, 12.5, "a guess"), SMOKE, {"train": 3}))


def test_a_row_without_room_for_its_answer_is_bad_input() -> None:
    rows = [pair("short", "What?", "This."), pair("long", "What is it? " * 20, "An answer.")]
    assert len(measured(make_tokenizer(), rows[:1], SMOKE)) == 1
    with pytest.raises(DataError, match="within the first 64 tokens of example long"):
        measured(make_tokenizer(), rows, SMOKE)


def test_lengths_are_those_before_the_cut() -> None:
    (found,) = measured(make_tokenizer(), [pair("a", "What?", "word " * 100)], SMOKE)
    assert found > 500


def test_a_pair_is_as_long_as_its_longer_answer() -> None:
    dpo = SMOKE.model_copy(update={"method": "dpo"})
    rows = [pair("a", "What?", "Short one.") | {"rejected": "A much longer answer than that."}]
    assert measured(make_tokenizer(), rows, dpo)[0] == measured(make_tokenizer(), rows, SMOKE)[0] + 21
    with pytest.raises(DataError, match="expected answers that differ within the first 64 tokens"):
        measured(make_tokenizer(), [rows[0] | {"rejected": "Short one." * 9, "messages": [
            {"role": "user", "content": "What?"}, {"role": "assistant", "content": "Short one." * 8}]}], dpo)  # fmt: skip


def test_rows_longer_than_the_context_are_refused(model: Path) -> None:
    config = fit.base_config(model, "tiny")
    assert fit.require_context(config, SMOKE, "tiny") == 256
    with pytest.raises(RecipeError, match="at most 256, the context of tiny, found 257"):
        fit.require_context(config, recipe("data", max_tokens=257), "tiny")


def test_a_tokenizer_without_a_chat_template_is_refused(model: Path, tmp_path: Path) -> None:
    assert fit.load_tokenizer(model, "tiny", SMOKE).chat_template
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="chat template in tiny, found none"):
        fit.load_tokenizer(tmp_path, "tiny", SMOKE)
    assert fit.load_tokenizer(tmp_path, "tiny", SMOKE.model_copy(update={"method": "pretrain"}))
    with pytest.raises(ModelError, match="expected a tokenizer"):
        fit.load_tokenizer(tmp_path / "nothing", "tiny", SMOKE)


def test_a_model_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}', encoding="utf-8")
    with pytest.raises(ModelError, match="that Transformers knows"):
        fit.base_config(tmp_path, "strange")


class Folder:
    """The part of a storage that `fit` reads from, over a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_bytes(self, uri: str) -> bytes:
        return (self.folder / uri.rsplit("/", 1)[1]).read_bytes()

    def get_start(self, uri: str, length: int) -> bytes:
        return self.get_bytes(uri)[:length]


def test_an_adapter_must_belong_to_base_model_and_recipe(model: Path, tmp_path: Path) -> None:
    shapes = fit.base_shapes(fit.base_config(model, "tiny"), "tiny")
    folder: Any = Folder(make_adapter(model, tmp_path / "adapter"))
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": "org/tiny"}
    path.write_text(json.dumps(config), encoding="utf-8")
    fits = recipe("lora", rank=2, alpha=config["lora_alpha"], targets=["q_proj", "v_proj", "down_proj"])
    scaled = recipe("lora", found=fits, alpha=2 * config["lora_alpha"])
    fit.require_adapter(folder, "s3://b/adapter", f"hub:org/tiny@{'a' * 40}", shapes, fits)
    other = {name: tuple(2 * side for side in shape) for name, shape in shapes.items()}
    for told, base, found, of in (
        ("found one of org/tiny", "hub:org/large@" + "a" * 40, shapes, fits),
        ("of rank 8", "org/tiny", shapes, SMOKE),
        (f"set lora.alpha to {config['lora_alpha']}", "org/tiny", shapes, scaled),
        ("lora.targets", "org/tiny", shapes, recipe("lora", found=fits, targets=["q_proj"])),
        ("matrices to fit org/tiny, found 12", "org/tiny", other, fits),
        ("is no layer", "org/tiny", {}, fits),
        ("no adapter where tuning is full", "org/tiny", shapes, SMOKE.model_copy(update={"lora": None})),
    ):
        with pytest.raises(ModelError, match=told):
            fit.require_adapter(folder, "s3://b/adapter", base, found, of)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 1 << 60))
    with pytest.raises(ModelError, match="no safetensors file"):
        fit.require_adapter(folder, "s3://b/adapter", "org/tiny", shapes, fits)


def test_layers_that_the_model_lacks_are_refused(model: Path) -> None:
    shapes = fit.base_shapes(fit.base_config(model, "tiny"), "tiny")
    fit.require_targets(shapes, SMOKE, "tiny")
    fit.require_targets(shapes, SMOKE.model_copy(update={"lora": None}), "tiny")
    with pytest.raises(
        RecipeError, match=r"found c_attn, which it does not have. Next: name some of down_proj, gate_proj"
    ):
        fit.require_targets(shapes, recipe("lora", targets=["q_proj", "c_attn"]), "tiny")
    with pytest.raises(RecipeError, match="found proj,"):  # part of a name is no name
        fit.require_targets(shapes, recipe("lora", targets=["proj"]), "tiny")


def test_machines_that_the_recipe_does_not_fit_are_refused() -> None:
    four = recipe("distribution", accelerator="cuda", ranks=4, nodes=2)
    fit.require_machines(four, 4, 2, 8)
    fit.require_machines(recipe("distribution", accelerator="cuda", ranks="all"), 7, 1, 8)
    fit.require_machines(SMOKE, 1, 1, 8)  # its ranks are processes on a CPU: no GPU is counted
    with pytest.raises(
        RecipeError, match="expected 2 nodes as the recipe says .*, found 1. Next: start fine_tune with nodes 2"
    ):
        fit.require_machines(four, 4, 1, 8)
    with pytest.raises(
        RecipeError, match="expected 4 GPUs on each node .*, found 8. Next: start fine_tune with gpus 4"
    ):
        fit.require_machines(four, 8, 2, 8)
    with pytest.raises(RecipeError, match="expected evaluation.gpus of at most 2, .* found 4"):
        fit.require_machines(recipe("evaluation", found=four, gpus=4), 4, 2, 2)


def test_operations_are_counted_as_the_worker_counts_them() -> None:
    shape, all_blocks = flops.Shape(1000, 100, 2, 8), recipe("lora", last_layers=None)
    forward, backward = 2 * 1100 + 2 * 2 * 8 * 50, 2 * 1100 + 4 * 2 * 8 * 50
    assert token_flops(shape, all_blocks, 50) == forward + backward
    assert token_flops(shape, recipe("lora", last_layers=1), 50) == forward + backward / 2
    assert token_flops(shape, all_blocks.model_copy(update={"tuning": "full"}), 50) == forward + backward + 2 * 1100
    assert token_flops(shape, all_blocks.model_copy(update={"method": "dpo"}), 50) == 2 * forward + backward


def test_ranks_of_a_node() -> None:
    assert ranks(SMOKE, 8) == 2
    assert ranks(recipe("distribution", ranks="all"), 8) == 8
