"""Register the assistant's prompt in MLflow's prompt registry, by content.

Reads a prompt's text, front matter included. Writes a version of the prompt `MODEL_NAME-prompt` whose template is that
text to the byte, with its SHA-256 and its front matter as tags; the same text again gets the version it has. MLflow fills
`{{name}}` and would show ours, `{name}`, as they are: it keeps the text, and the assistant renders it. What comes back
is read again and compared. Fails with `ReleaseError` when MLflow cannot keep the text or holds another under
its digest, and with `ServiceUnavailable` when MLflow is away.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from tasks import tracking
from tasks.errors import ReleaseError
from tasks.release.ledger import ledger
from tasks.serving.prompt import parse_prompt, prompt_digest
from tasks.settings import Settings

_LOCK = 0x50726F6D  # spells "Prom"
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_.-]")
_EXISTS = "RESOURCE_ALREADY_EXISTS"
_IS_PROMPT = "mlflow.prompt.is_prompt"


@dataclass(frozen=True)
class RegisteredPrompt:
    """A version of a prompt in MLflow."""

    name: str
    version: str
    sha256: str
    new: bool

    @property
    def uri(self) -> str:
        """What `mlflow.genai.load_prompt` takes."""
        return f"prompts:/{self.name}/{self.version}"


def prompt_name(settings: Settings) -> str:
    """Return the name under which MLflow keeps the prompts of this assistant; models have the same space of names."""
    return _UNNAMEABLE.sub("-", settings.model_name) + "-prompt"


def register_prompt(settings: Settings, text: str) -> RegisteredPrompt:
    """Return the version of this text, made where there is none. Raises ReleaseError, ServiceUnavailable."""
    from mlflow.exceptions import MlflowException

    name, sha256 = prompt_name(settings), prompt_digest(text)
    # One at a time: two proposals of one prompt must not make two versions.
    with ledger(settings) as connection, tracking.answering(settings) as client:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        _ensure(client, name)
        version, new = _known(client, name, sha256), False
        if version is None:
            try:
                made = client.create_prompt_version(name, text, description=_title(text), tags=_tags(text, sha256))
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                raise ReleaseError(
                    f"expected a prompt that MLflow can keep, found: {error.message}. Next: shorten the prompt."
                ) from error
            version, new = str(made.version), True
        found = client.get_prompt_version(name, version)
    _require_text(found, f"prompts:/{name}/{version}", sha256)
    return RegisteredPrompt(name, version, sha256, new)


def _ensure(client: Any, name: str) -> None:
    """Make the prompt unless it is there. Raises ReleaseError when a model has its name."""
    from mlflow.exceptions import MlflowException

    if client.get_prompt(name) is not None:
        return
    try:
        client.create_prompt(name, description="What the assistant tells the model; a release names a version.")
    except MlflowException as error:
        if error.error_code != _EXISTS:
            raise
        if client.get_prompt(name) is None:
            raise ReleaseError(
                f"expected a prompt {name} in MLflow, or none, found a model of that name. "
                "Next: rename that model, or set MILLRACE_MODEL_NAME."
            ) from error


def _known(client: Any, name: str, sha256: str) -> str | None:
    """Return the first version that carries this digest, or None."""
    wanted = f"name = '{name}' AND tags.`{_IS_PROMPT}` = 'true' AND tags.sha256 = '{sha256}'"
    return min((str(found.version) for found in client.search_model_versions(wanted)), key=int, default=None)


def _require_text(found: Any, uri: str, sha256: str) -> None:
    """What is registered must be what is released, to the byte. Raises ReleaseError."""
    kept = found.template if found is not None else None
    if not isinstance(kept, str) or prompt_digest(kept) != sha256:
        digest = prompt_digest(kept) if isinstance(kept, str) else "no text"
        raise ReleaseError(
            f"expected the prompt with sha256 {sha256} at {uri}, found {digest}. "
            "Next: find out who changed it in MLflow, and delete that version; it will be made again."
        )


def _front(text: str) -> dict[str, Any] | None:
    """Return the front matter as the assistant reads it; None where it could not use it (`propose` refuses that one)."""
    try:
        return parse_prompt(text, "the prompt").front.model_dump()
    except ReleaseError:
        return None


def _tags(text: str, sha256: str) -> dict[str, str]:
    return {"sha256": sha256, "front_matter": json.dumps(_front(text), sort_keys=True)}


def _title(text: str) -> str:
    front = _front(text)
    return f"{front['name']} version {front['version']} of its file" if front else "no front matter that can be used"
