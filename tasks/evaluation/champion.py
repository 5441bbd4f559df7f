"""The models that are compared, on this machine: base, candidate, and the champion that is live.

Reads the live release's weights as the ledger names them, and models by reference (through the model cache). Fails with
`ReleaseError` or `ModelError` when bytes are not those that were released or trained from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks import models
from tasks.errors import ModelError
from tasks.evaluation.measures import BASE, CANDIDATE, CHAMPION
from tasks.release.ledger import Release
from tasks.release.weights import Weights
from tasks.serving.adapters import fetch_adapter, folder_digest
from tasks.serving.base_files import require_signed
from tasks.stage import StageContext


@dataclass(frozen=True)
class Champion:
    """The weights of the live release on this machine; without `model`, the adapter is one upon the candidate's base."""

    sha256: str
    model: Path | None
    adapter: Path | None


@dataclass(frozen=True)
class Pass:
    """One model that is loaded once, the names it is measured under (with which adapter), and its tokenizer's folder."""

    model: Path
    names: Mapping[str, Path | None]
    tokenizer: Path


def fetch_champion(context: StageContext, release: Release, signed: Weights | None = None) -> Champion:
    """Fetch what the live release answers with, proven to be the released bytes. Raises ReleaseError, ModelError.

    `signed`, where there is a key, are the files that were signed: of a whole model its configuration and tokenizer too.
    """
    storage, cache = context.storage, context.settings.cache_dir
    adapter = None
    if release.adapter_uri is not None and release.adapter_sha256 is not None:
        adapter = fetch_adapter(storage, release.adapter_uri, release.adapter_sha256, cache)
        if release.base_revision == context.inputs["train"].facts["base_revision"]:
            return Champion(release.adapter_sha256, None, adapter)
    model = fetch_model(context, release.base_model, release.base_revision)
    if signed is not None and release.adapter_sha256 is None:
        require_signed(release.base_model, model, {name: item.sha256 for name, item in signed.files.items()})
    return Champion(release.adapter_sha256 or folder_digest(model), model, adapter)


def fetch_model(context: StageContext, reference: str, revision: str) -> Path:
    """Return the folder of a model whose weights are those of `revision`. Raises ModelError."""
    folder = models.fetch(reference, context.settings.cache_dir, context.storage)
    if (found := models.revision(reference, folder)) != revision:
        raise ModelError(
            f"expected revision {revision} of {reference}, as it was trained from or released, found {found}. "
            "Next: restore that model, or train from the one that is there."
        )
    return folder


def passes(context: StageContext, candidate: tuple[Weights, Path], champion: Champion | None) -> list[Pass]:
    """Return how base, candidate and champion are measured: with as many adapters as can be on one model. Raises ModelError."""
    facts = context.inputs["train"].facts
    base = fetch_model(context, str(facts["base_model"]), str(facts["base_revision"]))
    weights, folder = candidate
    on_base: dict[str, Path | None] = {BASE: None}
    found = [Pass(base, on_base, base)]
    if weights.kind == "adapter":
        on_base[CANDIDATE] = folder
    else:
        found.append(Pass(models.require_weights(folder, weights.uri), {CANDIDATE: None}, base))
    if champion is not None:
        if champion.model is None:
            on_base[CHAMPION] = champion.adapter
        else:
            found.append(Pass(champion.model, {CHAMPION: champion.adapter}, champion.model))
    return found
