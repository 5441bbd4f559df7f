"""The screening policy: what happens to what each rule finds, read from a file, with a fingerprint.

Reads `expectations/screening.yaml`. Writes nothing. Fails with `DataError` when the policy is malformed: an unknown or
missing rule, an action or an option that the rule does not have.
"""

from functools import cache
from importlib.metadata import version

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.contracts import digest
from tasks.errors import DataError, nearest
from tasks.screening.classifiers import PERSON_NAME, TOXICITY
from tasks.screening.credentials import ACCESS_TOKEN, PRIVATE_KEY
from tasks.screening.instructions import INJECTED_INSTRUCTIONS, INVISIBLE_TEXT
from tasks.screening.national_ids import NATIONAL_ID
from tasks.screening.personal import EMAIL_ADDRESS, IBAN, PAYMENT_CARD, PHONE_NUMBER
from tasks.screening.rules import Detector, Models, Rule
from tasks.screening.writing import ENCODING_DAMAGE, HIDDEN_CHARACTERS, LANGUAGE
from tasks.settings import Settings, repository_path

POLICY = "expectations/screening.yaml"

# In the order they are applied. Hidden characters come out first: one inside a token would hide the token from the
# other rules. Damage is repaired next, for the same reason.
DETECTORS: dict[str, Detector] = {
    "hidden_characters": HIDDEN_CHARACTERS,
    "encoding_damage": ENCODING_DAMAGE,
    "private_key": PRIVATE_KEY,
    "access_token": ACCESS_TOKEN,
    "email_address": EMAIL_ADDRESS,
    "payment_card": PAYMENT_CARD,
    "iban": IBAN,
    "national_id": NATIONAL_ID,
    "phone_number": PHONE_NUMBER,
    "person_name": PERSON_NAME,
    "injected_instructions": INJECTED_INSTRUCTIONS,
    "invisible_text": INVISIBLE_TEXT,
    "toxicity": TOXICITY,
    "language": LANGUAGE,
}
_COMMON = ("action", "allow")


class Policy(BaseModel):
    """What happens to what each rule finds; every rule has a line. And the models that some rules need."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: dict[str, Rule]
    models: Models = Models()

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides what is left of a text; rules that do nothing have no part in it."""
        return digest([_decides(name, rule, self.models) for name, rule in sorted(self.rules.items())])


def _decides(name: str, rule: Rule, models: Models) -> list[object]:
    detector = DETECTORS[name]
    model = detector.model(models) if detector.model else None
    if rule.action == "allow" or (detector.model and model is None):
        return [name]
    options = [getattr(rule, option) for option in detector.options]
    packages = [version(package) for package in detector.packages]
    return [name, rule.action, [p.pattern for p in rule.allow], options, detector.decided_by, packages, model]


def load_policy(path: str = POLICY, settings: Settings | None = None) -> Policy:
    """Return the policy of a file, with the models that the settings name. Raises DataError for a malformed rule."""
    policy = _read(path)
    if settings is None or (settings.names_model is None and settings.toxicity_model is None):
        return policy
    models = Models(settings.names_model, settings.toxicity_model, settings.cache_dir, settings.s3_endpoint_url)
    return policy.model_copy(update={"models": models})


@cache
def _read(path: str) -> Policy:
    name = repository_path(path).name
    try:
        content = yaml.safe_load(repository_path(path).read_text(encoding="utf-8"))
        policy = Policy(rules=content.get("rules") if isinstance(content, dict) else content)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise DataError(
            f"expected a screening policy in {name}, found {error}. Next: correct it; the rules are {sorted(DETECTORS)}."
        ) from error
    if isinstance(content, dict) and (extra := sorted(content.keys() - {"rules"})):
        raise DataError(f"expected `rules` alone in {name}, found {extra}. Next: remove the rest.")
    for unknown in sorted(policy.rules.keys() - DETECTORS.keys()):
        raise DataError(
            f"expected rules that tasks/screening knows in {name}, found {unknown!r}.{nearest(unknown, DETECTORS)} "
            "Next: correct its name."
        )
    if missing := sorted(DETECTORS.keys() - policy.rules.keys()):
        raise DataError(f"expected a line for every rule in {name}, found none for {missing}. Next: add action: allow.")
    for rule_name, rule in policy.rules.items():
        _check(name, rule_name, rule)
    return policy


def _check(file: str, name: str, rule: Rule) -> None:
    """Raise DataError for an action or an option that the rule does not have."""
    detector = DETECTORS[name]
    if rule.action not in detector.actions:
        raise DataError(
            f"expected an action of {list(detector.actions)} for {name} in {file}, found {rule.action!r}. Next: choose one."
        )
    if extra := sorted(rule.model_fields_set - {*_COMMON, *detector.options}):
        raise DataError(
            f"expected the options {[*_COMMON, *detector.options]} for {name} in {file}, found {extra}. Next: remove them."
        )
