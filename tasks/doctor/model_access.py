"""Checks of the models: the configuration of the base model and of the embedder can be fetched. Weights are not.

Reads a package, a folder in S3, or the model hub; asks the endpoint of an embedder for one vector. What comes from the hub
goes to a temporary folder.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.doctor.examine import Place
from tasks.errors import ModelError, ServiceUnavailable
from tasks.models import HUB, no_reference, package_path

CONFIG = "config.json"


def of(setting: str) -> Callable[[Place], str]:
    """Return the check of the model that a setting names."""

    def check(place: Place) -> str:
        reference = str(getattr(place.settings, setting))
        if reference.startswith("package:"):
            return f"{reference}: {_package(reference)}"
        if reference.startswith("s3://"):
            return f"{reference}: {_folder(reference, place)}"
        if HUB.match(reference):
            return f"{reference}: {_hub(reference, place)}"
        if reference.startswith("openai:") and setting == "embedder":
            return f"{reference}: {_endpoint(place)}"
        raise no_reference(reference)

    return check


def _package(reference: str) -> str:
    path = package_path(reference)
    if path.suffix == ".gguf":
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(
                    f"expected a GGUF file for {reference}, found another. Next: install the package again."
                )
        return f"a GGUF file of {path.stat().st_size / 1e6:.0f} MB"
    if not (path / CONFIG).is_file() or not any(path.rglob("*.safetensors")):
        raise _incomplete(reference)
    return "configuration and weights installed"


def _folder(reference: str, place: Place) -> str:
    from tasks.storage import Storage

    storage, folder = Storage(place.settings.s3_endpoint_url, attempts=2), reference.rstrip("/") + "/"
    sizes = {uri.removeprefix(folder): size for uri, size, _etag in storage.list(folder)}
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    if CONFIG not in sizes or not weights:
        raise _incomplete(reference)
    storage.get_start(folder + CONFIG, 1)
    return f"configuration readable, weights of {weights / 1e9:.1f} GB there"


def _endpoint(place: Place) -> str:
    from tasks.knowledge.embedders import dimensions

    return f"the endpoint gives vectors of length {dimensions(place.settings)}"


def _incomplete(reference: str) -> ModelError:
    return ModelError(
        f"expected {CONFIG} and safetensors weights in {reference}, found one of them missing. "
        "Next: upload both (save_pretrained(safe_serialization=True)), or correct the setting."
    )


def _hub(reference: str, place: Place) -> str:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE

    match = HUB.match(reference)
    assert match is not None
    name, revision = match["name"], match["revision"]
    cached = try_to_load_from_cache(name, CONFIG, cache_dir=place.settings.cache_dir / "hub", revision=revision)
    if isinstance(cached, str):
        return f"configuration in the cache {place.settings.cache_dir}"
    if HF_HUB_OFFLINE:
        raise ModelError(
            f"expected {reference} in the cache (HF_HUB_OFFLINE is set), found nothing. "
            "Next: unset it, fill the cache, or mirror the model to s3:// and name that."
        )
    with tempfile.TemporaryDirectory() as folder, _told(reference):
        path = hf_hub_download(name, CONFIG, revision=revision, cache_dir=folder, etag_timeout=10)
        return f"configuration fetched from the hub ({Path(path).stat().st_size} bytes)"


@contextmanager
def _told(reference: str) -> Iterator[None]:
    """Translate the hub's errors: a closed model, a wrong name, and an absent hub differ."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"expected access to {reference}, found that its makers have to allow it. "
            "Next: accept the licence on its page, and set HF_TOKEN to a token of that account."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise ModelError(
            f"expected {CONFIG} of {reference}, found {type(error).__name__}. "
            "Next: correct name and commit; a private model needs HF_TOKEN."
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise ServiceUnavailable(
            f"expected the model hub to answer for {reference}, found {str(error)[:200]}. "
            "Next: check the network and HF_ENDPOINT, or mirror the model to s3:// and name that."
        ) from error
