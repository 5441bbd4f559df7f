"""The training behind a release, from the evidence kept with it: its manifests survive their run folder.

Reads the evidence that the ledger names, by digest; writes nothing. Fails with `ManifestError` when its bytes are others,
and with `ReleaseError` when it is not about the release, or about no training.
"""

from dataclasses import dataclass

from tasks.contracts import Artifact, Manifest
from tasks.errors import ReleaseError
from tasks.release import evidence as proofs
from tasks.release.ledger import Release
from tasks.release.weights import Weights, release_columns, trained
from tasks.storage import Storage


@dataclass(frozen=True)
class Original:
    """The training behind a release."""

    release: Release
    dataset: Manifest
    train: Manifest
    evaluate: Manifest
    weights: Weights

    def option(self, name: str) -> str:
        """Return an option that `train` ran with."""
        return str(self.train.options[name].value) if name in self.train.options else ""

    @property
    def frozen(self) -> dict[str, Artifact]:
        """What of the dataset outlives its run folder: the rows of each side."""
        inside = f"{self.dataset.run.rstrip('/')}/"
        return {name: item for name, item in self.dataset.outputs.items() if not item.uri.startswith(inside)}


def recall(storage: Storage, release: Release) -> Original:
    """Return the training behind a release from its kept evidence. Raises ManifestError, ReleaseError."""
    content = proofs.recall(storage, release.evidence_uri, release.evidence_sha256)
    kept = content.get("manifests", {})
    wanted = ("validate_dataset", "train", "evaluate")
    if missing := [name for name in wanted if name not in kept]:
        raise ReleaseError(
            f"expected the manifests of the training in the evidence of release {release.release}, found none of "
            f"{', '.join(missing)}. Next: reproduce a release that was promoted from a candidate."
        )
    dataset, train, evaluate = (Manifest.model_validate(kept[name]) for name in wanted)
    weights = trained(train)
    named = release_columns(weights, train)
    if (named["adapter_sha256"], named["base_revision"]) != release.identity:
        raise ReleaseError(
            f"expected evidence about adapter and base {release.identity}, which release {release.release} has, found "
            f"{named['adapter_sha256']}, {named['base_revision']}. Next: compare the ledger with a backup."
        )
    return Original(release, dataset, train, evaluate, weights)
