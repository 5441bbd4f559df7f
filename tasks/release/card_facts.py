"""The facts of a model card: what the stages of a fine-tune wrote down, and nothing else.

Reads the manifests that `register` needs; those of `build_dataset` and `plan_training` where the run has them; the recipe
and the verdict that the manifests name; `corpora.yaml` for the licence of the corpus; the failed tries of the run. Writes nothing. What no stage
wrote down is absent here, and `unknown` or `not measured` on the card. Fails with `ManifestError` when bytes differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.contracts import Manifest, manifest_uri
from tasks.errors import SettingsError
from tasks.knowledge import corpora
from tasks.release.card_tries import Tries, failed_tries
from tasks.release.evidence import Evidence
from tasks.release.weights import release_columns
from tasks.settings import Settings
from tasks.stage import StageContext, code_revision
from tasks.storage import Storage

# What comes with Python is under Python's licence (examples/README.md).
_WITH_PYTHON = {"docstrings:stdlib": "PSF-2.0", "pydoc:topics": "PSF-2.0"}
_EARLIER = ("build_dataset", "plan_training")


@dataclass(frozen=True)
class CardFacts:
    """Everything a card is made of. `stages` are manifests by the name of their stage."""

    name: str
    version: str
    columns: Mapping[str, Any]
    evidence: Evidence
    stages: Mapping[str, Manifest]
    recipe: Mapping[str, Any]
    verdict: Mapping[str, Any]
    licences: Mapping[str, str]
    gpu_hour_price: float | None
    code_revision: str
    tries: Mapping[str, Tries] | None = None
    """Tries that failed, by stage; None where the database was away."""

    def part(self, name: str) -> Mapping[str, Any]:
        """Return a part of the recipe; empty where the recipe is not known."""
        found = self.recipe.get(name)
        return found if isinstance(found, Mapping) else {}

    def judged(self) -> list[Mapping[str, Any]]:
        """Return the rows of the verdict's table; empty where the gate kept none."""
        return _rows(self.verdict, "judged")

    def not_judged(self) -> list[Mapping[str, Any]]:
        """Return what the gate did not judge, and why."""
        return _rows(self.verdict, "not_judged")


def gather(context: StageContext, evidence: Evidence, version: str) -> CardFacts:
    """Return the facts about the weights of this run, which are `version` of the registered model."""
    needed = (evidence.validate_dataset, evidence.train, evidence.evaluate, evidence.gate)
    earlier = (_earlier(context.storage, context.run, name, evidence) for name in _EARLIER)
    stages = {manifest.stage: manifest for manifest in (*earlier, *needed) if manifest is not None}
    return CardFacts(
        name=context.settings.model_name,
        version=version,
        columns=release_columns(evidence.weights, evidence.train),
        evidence=evidence,
        stages=stages,
        recipe=_content(context.storage, evidence.train, "recipe"),
        verdict=_content(context.storage, evidence.gate, "verdict"),
        licences=licences(context.settings, stages.get("build_dataset")),
        gpu_hour_price=context.settings.gpu_hour_price,
        code_revision=code_revision(context.settings),
        tries=failed_tries(context, stages),
    )


def licences(settings: Settings, built: Manifest | None) -> dict[str, str]:
    """Return the licences of training rows by their origin; an origin whose licence nobody wrote down is absent."""
    if built is None:
        return {}
    examples, corpus = str(built.facts.get("examples", "")), str(built.facts.get("corpus", ""))
    found = {"docstrings": _WITH_PYTHON.get(examples), "corpus": _corpus_licence(settings, corpus)}
    return {origin: licence for origin, licence in found.items() if licence}


def _corpus_licence(settings: Settings, corpus: str) -> str | None:
    known = corpora.load_corpora(settings.corpora)
    try:
        name, source = corpora.name_of(settings, corpus), corpora.source_of(settings, corpus)
    except SettingsError:  # the corpus was taken out of the file since: nobody says its licence any more
        return None
    written = known.get(name, corpora.Corpus(name)).licence
    # What the file says is of the source that it names, not of another that was given by its place.
    return _WITH_PYTHON.get(source) or (written if corpus in (name, settings.corpus) else None)


def _earlier(storage: Storage, run: str, stage: str, evidence: Evidence) -> Manifest | None:
    """Return the manifest of an earlier stage if what was trained on came from it: an attempt after that tells nothing."""
    manifest = storage.read_manifest(manifest_uri(run, stage))
    if manifest is None:
        return None
    seen = {**evidence.validate_dataset.inputs, **evidence.train.inputs}
    for name, artifact in manifest.outputs.items():
        found = seen.get(f"{stage}/{name}")
        if found is None or found.sha256 != artifact.sha256:
            return None
    return manifest


def _content(storage: Storage, manifest: Manifest, output: str) -> Mapping[str, Any]:
    artifact = manifest.outputs.get(output)
    content = storage.get_json(artifact) if artifact is not None else {}
    return content if isinstance(content, Mapping) else {}


def _rows(verdict: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = verdict.get(name)
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
