"""Every object of every overlay against the schemas of current Kubernetes, unknown fields refused."""

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from tests.manifests.installations import OVERLAYS, filled
from tests.manifests.kustomize import Object, identity

# The cluster of infra/terraform, and the newest that the package knows.
VERSIONS = ("1.34", "1.37")


def check(each: Object, version: str) -> None:
    """Raise ValidationError for what a version of Kubernetes does not take."""
    kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_every_object(overlay: str, version: str) -> None:
    refused = {}
    for each in filled(overlay):
        try:
            check(each, version)
        except kubernetes_validate.ValidationError as error:
            refused[identity(each)] = str(error)
    assert not refused


@pytest.mark.parametrize("change", [{"minAvailabel": 1}, {"minAvailable": [1]}])
def test_a_wrong_field_is_found(change: Object) -> None:
    budget = next(each for each in filled("small") if each["kind"] == "PodDisruptionBudget")
    with pytest.raises(kubernetes_validate.ValidationError):
        check(budget | {"spec": budget["spec"] | change}, VERSIONS[0])
