"""Configuration and tokenizer of a signed whole model: another byte in them is refused on every way to a loaded model."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from tasks import models
from tasks.contracts import Artifact
from tasks.errors import ReleaseError
from tasks.evaluation.champion import fetch_champion
from tasks.release.weights import Weights
from tasks.serving.base_files import differing, digests
from tasks.serving.language_model import Sampling
from tasks.serving.loading import Loaded, Loader
from tasks.serving.transformers_model import load_base
from tasks.serving.upstream import connect_base, served_base
from tasks.settings import Settings
from tasks.storage import file_digest

from .conftest import WordEmbedder, make_release
from .served_llama import KEY, ServedLlama, running

REFERENCE = "package:millrace_signed_model/model"
REFUSED = "as they were signed, found tokenizer.json other"


class Model:
    """A model's folder that can be named, what was signed of it, and its revision."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.revision = folder, models.revision(REFERENCE, folder)
        self.signed = {path.name: file_digest(path) for path in folder.iterdir()}

    def change(self, name: str = "tokenizer.json") -> None:
        """Change one byte, beside unchanged weights."""
        path = self.folder / name
        path.write_bytes(path.read_bytes() + b"\n")


@pytest.fixture
def whole(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A copy of the tiny model in a package of its own; the child process that fetches it finds it too."""
    package = tmp_path / "packages" / "millrace_signed_model"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(package.parent))
    return Model(shutil.copytree(tiny_llama, package / "model"))


def test_a_changed_byte_of_the_tokenizer_is_not_loaded(whole: Model, tmp_path: Path) -> None:
    model = load_base(REFERENCE, whole.revision, tmp_path, None, 1, whole.signed)
    assert model.generate(None, [1, 2], Sampling(max_tokens=2)).result().completion_tokens > 0
    model.close()
    whole.change()
    with pytest.raises(ReleaseError, match=REFUSED):
        load_base(REFERENCE, whole.revision, tmp_path, None, 1, whole.signed)
    load_base(REFERENCE, whole.revision, tmp_path, None, 1).close()  # nothing is known of its files


def test_what_is_missing_or_new_is_told_and_weights_are_the_revisions(whole: Model) -> None:
    found = digests(whole.folder)
    assert set(found) == set(whole.signed) - {"model.safetensors"} and differing(found, whole.signed) == []
    assert differing(found, whole.signed | {"model.safetensors": "0"}) == []
    assert differing(found, whole.signed | {"chat.jinja": "0"}) == ["chat.jinja"]
    assert differing(found | {"added.json": "0"}, whole.signed) == ["added.json"]


def test_a_tokenizer_read_beside_a_model_server_is_compared_too(whole: Model, settings: Settings) -> None:
    with running(ServedLlama(whole.folder, served_base(whole.revision))) as port:
        own = settings.model_copy(
            update={"generation_url": f"http://127.0.0.1:{port}/v1", "generation_key": SecretStr(KEY)}
        )
        connect_base(REFERENCE, whole.revision, own, whole.signed).close()
        whole.change()
        with pytest.raises(ReleaseError, match=REFUSED):
            connect_base(REFERENCE, whole.revision, own, whole.signed)


@pytest.mark.parametrize("upstream", [False, True], ids=["in this process", "on a server"])
def test_a_model_that_an_adapter_brought_is_not_shared_unproven(
    whole: Model, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream: bool
) -> None:
    """First an adapter upon the whole model, whose release says nothing of its tokenizer; then back to the model itself."""
    with running(ServedLlama(whole.folder, served_base(whole.revision))) as port:
        changes: dict[str, Any] = {"cache_dir": tmp_path}
        if upstream:
            changes |= {"generation_url": f"http://127.0.0.1:{port}/v1", "generation_key": SecretStr(KEY)}
        loader = Loader(settings.model_copy(update=changes), SimpleNamespace(run=lambda _: None), threads=1)  # type: ignore[arg-type]
        monkeypatch.setattr(loader, "_proven", lambda _release: whole.signed)
        release = make_release(base_model=REFERENCE, base_revision=whole.revision)

        def after(model: Any) -> Loaded:
            """Load the whole model's release beside one that answers with `model`."""
            beside = Loaded(make_release(2), None, WordEmbedder(), model, "a")  # type: ignore[arg-type]
            return loader.load(release, beside)

        def brought() -> Any:
            upon = make_release(2, base_model=REFERENCE, base_revision=whole.revision, adapter_sha256="a" * 64)
            return loader._base(upon, None, {"adapter_model.safetensors": "0"})

        model = brought()
        assert after(model).model is model, "what is as it was signed is shared"
        model.close()
        whole.change()
        model = brought()
        with pytest.raises(ReleaseError, match=REFUSED):
            after(model)
        model.close()


def test_a_champion_that_reads_with_another_tokenizer_is_not_measured(
    whole: Model, settings: Settings, tmp_path: Path
) -> None:
    files = {
        name: Artifact(uri=f"s3://b/models/f/model/{name}", sha256=sha256, bytes=1)
        for name, sha256 in whole.signed.items()
    }
    signed = Weights("model", "s3://b/models/f/model", files)
    context: Any = SimpleNamespace(storage=None, settings=settings.model_copy(update={"cache_dir": tmp_path}))
    release = make_release(base_model=REFERENCE, base_revision=whole.revision)
    assert fetch_champion(context, release, signed).model == whole.folder
    whole.change()
    with pytest.raises(ReleaseError, match=REFUSED):
        fetch_champion(context, release, signed)
    assert fetch_champion(context, release).model == whole.folder, "without a key nothing is known of its files"
