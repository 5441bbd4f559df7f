"""Register trained weights whose verdict is `promote` or `review`, an adapter or a whole model, as a model version in MLflow.

Reads the manifests of validate_dataset, train, evaluate and gate of the same run, and every byte of the
weights. Writes a version of the registered model `MILLRACE_MODEL_NAME` with alias `candidate`. The
version's source is the weights' own folder in S3: named by its training fingerprint, never rewritten,
so nothing is copied through the MLflow server, and `models:/NAME@candidate` downloads the same bytes.
Beside it, named by its own digest, is the model card, as Markdown and as a page: tag `card` names it, and the
version's description is its short form. The same weights again get the version they have, also where two registrations
race. Fails with `ReleaseError` when the verdict is not about these bytes, when other weights stand where registered ones
were, or when the name is a prompt's; with `ServiceUnavailable` when MLflow is away.
"""

from typing import Any

from tasks import tracking
from tasks.contracts import Artifact, digest, manifest_uri
from tasks.errors import ReleaseError, ServiceUnavailable
from tasks.release import card, card_page
from tasks.release import evidence as proofs
from tasks.release.card_facts import CardFacts, gather
from tasks.release.evidence import Evidence
from tasks.release.ledger import ledger
from tasks.release.mirror import reconcile_mirrors
from tasks.release.signed_candidate import endorsed, signed
from tasks.release.signing_keys import key_id, signing_key
from tasks.release.weights import release_columns, verify
from tasks.settings import Settings
from tasks.stage import Stage, StageContext, StageOptions, StageResult, code_revision

_LOCK = 0x52656769  # spells "Regi"
_EXISTS = "RESOURCE_ALREADY_EXISTS"
ALIAS = "candidate"


class Options(StageOptions):
    """No options: what is registered is what the gate of this run let pass."""


def run(context: StageContext, options: Options) -> StageResult:
    """Register the weights of this run as a model version with alias `candidate`."""
    reconcile_mirrors(context.settings)
    evidence = Evidence(**{name: context.inputs[name] for name in STAGE.needs})
    proofs.check(evidence)
    weights = evidence.weights
    verify(context.storage, weights)
    tags = signed(context.settings, context.settings.model_name, model_tags(context, evidence))
    # One registration at a time: two runs with the same weights must not make two versions.
    with ledger(context.settings) as connection, tracking.answering(context.settings) as client:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        version, new = _version(client, context.settings, evidence, tags)
        name = context.settings.model_name
        facts = gather(context, evidence, version)
        cards = _cards(context, evidence, facts)
        client.set_model_version_tag(name, version, "card", cards["card.html"].uri)
        client.update_model_version(name, version, card.description(facts, cards["card.html"].uri))
        client.set_registered_model_alias(name, ALIAS, version)
        run_url = _run_url(client, context.settings, str(evidence.train.facts["mlflow_run_id"]))
    registered = {"model_name": name, "model_version": version, "new_version": new, "mlflow_url": run_url}
    return StageResult(
        outputs=cards,
        counts={"files": len(weights.files), "bytes": sum(a.bytes for a in weights.files.values())},
        facts=endorsed(context.settings, facts_of(evidence, tags) | registered),
        base_model=evidence.train.base_model,
    )


def facts_of(evidence: Evidence, tags: dict[str, str]) -> dict[str, Any]:
    """Return what is told of the weights and of the verdict about them."""
    weights = evidence.weights
    return release_columns(weights, evidence.train) | {
        "weights": weights.kind,
        "weights_uri": weights.uri,
        "weights_sha256": weights.sha256,
        "trained_from": tags["trained_from"],
        "dataset_sha256": tags["dataset_sha256"],
        "recipe": tags["recipe"],
        "verdict": evidence.gate.facts["verdict"],
        "mlflow_run_id": evidence.train.facts["mlflow_run_id"],
        "evidence_uri": evidence.gate.uri,
        "evidence_sha256": evidence.gate_sha256,
    }


def model_tags(context: StageContext, evidence: Evidence) -> dict[str, str]:
    """Return the tags of the model version: what made it, and where the proof is."""
    facts, weights = evidence.train.facts, evidence.weights
    columns = release_columns(weights, evidence.train)
    return {
        "weights": weights.kind,
        f"{weights.kind}_sha256": weights.sha256,
        f"{weights.kind}_uri": weights.uri,
        "training_fingerprint": str(facts["training_fingerprint"]),
        "dataset_sha256": str(evidence.validate_dataset.facts["dataset_sha256"]),
        "trained_from": str(facts["base_model"]),
        "base_model": columns["base_model"],
        "base_revision": columns["base_revision"],
        "recipe": str(facts["recipe"]),
        "code_revision": code_revision(context.settings),  # that of this stage; the training's own may be older
        "training_code_revision": evidence.train.code_revision,
        "evidence": evidence.gate.uri,
        "evidence_sha256": evidence.gate_sha256,
        "manifest": manifest_uri(context.run, context.stage),
    }


def _cards(context: StageContext, evidence: Evidence, facts: CardFacts) -> dict[str, Artifact]:
    """Write the card beside the weights: it outlives the run folder."""
    text = card.markdown(facts)
    page = card_page.page(text, f"Model card: {facts.name} version {facts.version}")
    folder = f"{evidence.weights.uri.rsplit('/', 1)[0]}/cards/{digest(text)[:16]}"
    written = {"card.md": (text, "text/markdown"), "card.html": (page, "text/html")}
    return {
        name: context.storage.put_bytes(f"{folder}/{name}", body.encode(), content_type=f"{kind}; charset=utf-8")
        for name, (body, kind) in written.items()
    }


def _version(client: Any, settings: Settings, evidence: Evidence, tags: dict[str, str]) -> tuple[str, bool]:
    """Return the model version of these weights, and whether it is new."""
    name, source, kind = settings.model_name, evidence.weights.uri, evidence.weights.kind
    key, sha256 = f"{kind}_sha256", evidence.weights.sha256
    _ensure_model(client, name)
    here = client.search_model_versions(f"name = '{name}' AND source_path = '{source}'")
    for version in here:
        if version.tags.get(key) != sha256:
            raise ReleaseError(
                f"expected {kind} {version.tags.get(key)} at {source} (version {version.version} of {name}), "
                f"found {sha256}. Next: find out who rewrote that folder; do not release either."
            )
    known = _with_digest(client, name, key, sha256)
    if known is not None:
        for tag, value in tags.items():  # the newest proof about these bytes
            if known.tags.get(tag) != value:
                client.set_model_version_tag(name, known.version, tag, value)
        return str(known.version), False
    return _create(client, settings, evidence, tags)


def _create(client: Any, settings: Settings, evidence: Evidence, tags: dict[str, str]) -> tuple[str, bool]:
    """Make a version of these weights, unless a rival that our lock does not hold makes one: the first one stands."""
    from mlflow.exceptions import MlflowException

    name, source, kind = settings.model_name, evidence.weights.uri, evidence.weights.kind
    made = ""
    try:
        run_id = str(evidence.train.facts["mlflow_run_id"])
        made = str(client.create_model_version(name, source, run_id, tags=tags).version)
    except MlflowException as error:
        if error.error_code != _EXISTS:
            raise
    first = _with_digest(client, name, f"{kind}_sha256", evidence.weights.sha256)
    if first is None:
        raise ServiceUnavailable(
            f"expected the version of {kind} {evidence.weights.sha256} in {name}, which MLflow says exists, found none. "
            "Next: try again."
        )
    if made and str(first.version) != made:
        client.delete_model_version(name, made)
    return str(first.version), str(first.version) == made


def _with_digest(client: Any, name: str, key: str, sha256: str) -> Any:
    """Return the first version that carries this digest, or None."""
    same = client.search_model_versions(f"name = '{name}' AND tags.{key} = '{sha256}'")
    return min(same, key=lambda version: int(version.version), default=None)


def _ensure_model(client: Any, name: str) -> None:
    """Make the registered model unless it is there, or a rival makes it meanwhile. Raises ReleaseError."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        try:
            client.create_registered_model(name, description="Weights of the assistant. `champion` is live.")
        except MlflowException as raced:
            if raced.error_code != _EXISTS:
                raise
    if client.get_prompt(name) is not None:  # prompts and models share their names
        raise ReleaseError(
            f"expected a registered model {name}, or none, found a prompt of that name in MLflow. "
            "Next: set MILLRACE_MODEL_NAME to another name."
        )


def _run_url(client: Any, settings: Settings, run_id: str) -> str:
    experiment = client.get_run(run_id).info.experiment_id
    return f"{tracking.public(settings.mlflow_tracking_uri).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def _signer(context: StageContext) -> str | None:
    """Return the id of the key that would sign, or None: what another one signed, or nobody, is registered again."""
    private = signing_key(context.settings)
    return key_id(private.public_key()) if private is not None else None


STAGE = Stage("register", Options, run, needs=("validate_dataset", "train", "evaluate", "gate"), reads=_signer)
