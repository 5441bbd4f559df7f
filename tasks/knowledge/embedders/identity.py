"""The identity of an embedder: whose vectors may be compared with whose.

`REFERENCE@DIGEST+PRECISION`, where DIGEST pins the model (the hub's commit, else a digest of weights, configuration, tokenizer,
largest input, pooling and prompts) and PRECISION is fp32, bf16, bf16-openvino or int8, because vectors of different precision are
not equal. In fp32 torch and OpenVINO give the same vectors. In bf16 they round at different places: measured on 1,000 real
passages, the least cosine between the two is 0.99987 and of the nearest ten they share 0.9905, so each has a name of its own
and runs what it names. An endpoint's is `openai:MODEL@HOST+api`, where HOST is a digest of its address.

Which precision `auto` means depends on the machine; a corpus that is indexed keeps the one it has (`current` of `configured`), or
machines that differ would take turns to make all of it anew.

Reads the folder of a model (fetching it: tasks.models), writes nothing else. Fails with `ModelError` for a name that is
none, weights that have changed, or a reference that cannot be used.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tasks.contracts import digest
from tasks.errors import ModelError, SettingsError
from tasks.knowledge.embedders.folder import beside_weights
from tasks.knowledge.embedders.probe import Backend, Precision, backend_of, may_run, precision_of
from tasks.models import HUB, fetch, fetch_tokenizer, revision
from tasks.settings import Settings
from tasks.storage import Storage

API: Literal["api"] = "api"
OPENAI = "openai:"
_DIGEST_LENGTH = 16
# What an identity ends with: the precision, and the backend where the vectors depend on it.
_TAGS: Mapping[str, tuple[Precision | Literal["api"], Backend | None]] = {
    "fp32": ("fp32", None),
    "bf16": ("bf16", "torch"),
    "bf16-openvino": ("bf16", "openvino"),
    "int8": ("int8", "openvino"),
    "api": ("api", None),
}


@dataclass(frozen=True)
class EmbedderSpec:
    """An embedder, named completely; `reference` is what can be fetched, or `openai:MODEL`."""

    reference: str
    digest: str
    precision: Precision | Literal["api"]
    backend: Backend | None = None  # None: whatever this machine has

    @property
    def pinned(self) -> str:
        """The name without the precision."""
        return f"{self.reference.partition('@')[0] if is_hub(self.reference) else self.reference}@{self.digest}"

    @property
    def name(self) -> str:
        """The identity."""
        tag = next(tag for tag, meaning in _TAGS.items() if meaning == (self.precision, self.backend))
        return f"{self.pinned}+{tag}"


def configured(settings: Settings, reference: str | None = None, current: str | None = None) -> EmbedderSpec:
    """Return the embedder that the settings ask for, or that of another reference. Raises ModelError.

    `current` is the identity that a corpus is indexed with: for `auto` its precision stays, where the model is the same.
    """
    reference = reference or settings.embedder
    if reference.startswith(OPENAI):
        return EmbedderSpec(reference, endpoint_digest(settings), API)
    precision = precision_of(settings)
    backend = None if precision == "fp32" else backend_of(settings, precision)
    spec = EmbedderSpec(reference, digest_of(reference, folder_of(settings, reference)), precision, backend)
    return _kept(settings, spec, current or "")


def _kept(settings: Settings, spec: EmbedderSpec, current: str) -> EmbedderSpec:
    """Return `spec` in the precision of `current`, where `auto` may choose it and this machine can run it."""
    pinned, _, tag = current.rpartition("+")
    precision, backend = _TAGS.get(tag, (API, None))
    chosen = settings.embedder_precision != "auto" or not (backend is None or may_run(settings, backend))
    if chosen or pinned != spec.pinned or precision not in ("fp32", "bf16"):
        return spec
    return replace(spec, precision=precision, backend=backend)


def named(settings: Settings, name: str, reference: str | None = None) -> EmbedderSpec:
    """Return the embedder of an identity, with a reference that can be fetched. Raises ModelError.

    `reference`, or else the configured one, is taken where it is the same model: it may hold the hub's whole commit.
    """
    pinned, _, tag = name.rpartition("+")
    model, _, digest = pinned.rpartition("@")
    if not model or not digest or tag not in _TAGS or (tag == API) != model.startswith(OPENAI):
        raise ModelError(
            f"expected an embedder as REFERENCE@DIGEST+PRECISION ({', '.join(_TAGS)}), found {name!r}. Next: run sync_knowledge."
        )
    wanted = model
    if is_hub(model):
        given = (reference or "", settings.embedder)
        wanted = next((text for text in given if is_hub(text) and text.startswith(pinned)), "")
        wanted = wanted or _cached_commit(settings.cache_dir, pinned)
    return EmbedderSpec(wanted, digest, *_TAGS[tag])


def verified(settings: Settings, spec: EmbedderSpec) -> Path:
    """Return the folder of a spec's reference, which is the one of its digest. Raises ModelError."""
    folder = folder_of(settings, spec.reference)
    found = digest_of(spec.reference, folder)
    # Identities once held the weights alone: a release that was made then can still be loaded, and compared with.
    if spec.digest != found and spec.digest != revision(spec.reference, folder)[:_DIGEST_LENGTH]:
        raise ModelError(
            f"expected the embedder {spec.name}, found other weights, settings or tokenizer ({found}) under {spec.reference}. "
            "Next: put the former ones back, or run sync_knowledge so that the index is made with the new ones."
        )
    return folder


def folder_of(settings: Settings, reference: str, *, weights: bool = True) -> Path:
    """Return a local folder of the model; without weights, where they are not needed and need not be fetched."""
    storage = Storage(settings.s3_endpoint_url) if reference.startswith("s3://") else None
    return (fetch if weights else fetch_tokenizer)(reference, settings.cache_dir, storage)


def digest_of(reference: str, folder: Path) -> str:
    """Return what pins the vectors of a folder: its weights, and what else decides them. Raises ModelError."""
    weights = revision(reference, folder)
    if is_hub(reference):  # a commit pins all files
        return weights[:_DIGEST_LENGTH]
    return digest({"weights": weights, **beside_weights(folder)})[:_DIGEST_LENGTH]


def endpoint_digest(settings: Settings) -> str:
    """Return what pins an endpoint: a digest of its address. Raises SettingsError without one."""
    if not settings.embedder_url:
        raise SettingsError(
            "expected MILLRACE_EMBEDDER_URL for an openai: embedder, found none. Next: set it to http://host/v1."
        )
    return hashlib.sha256(settings.embedder_url.rstrip("/").encode()).hexdigest()[:_DIGEST_LENGTH]


def is_hub(reference: str) -> bool:
    """Tell whether a reference is of the model hub, which only takes whole commits."""
    return reference.startswith("hub:")


def _cached_commit(cache: Path, pinned: str) -> str:
    """Return the hub reference with the whole commit, of which an identity holds the beginning. Raises ModelError."""
    model, _, digest = pinned.partition("@")
    stored = cache / "hub" / f"models--{model.removeprefix('hub:').replace('/', '--')}" / "snapshots"
    found = sorted(path.name for path in stored.glob(f"{digest}*")) if HUB.match(pinned) else []
    if len(digest) == 40 or not HUB.match(pinned):
        return pinned
    if not found:
        raise ModelError(
            f"expected the whole commit of {pinned}, found it neither in the settings nor in the model cache. "
            f"Next: set MILLRACE_EMBEDDER={model}@ with the commit that begins with {digest}."
        )
    return f"{model}@{found[0]}"
