"""What must not reach an index or a dataset, by one policy for both: expectations/screening.yaml.

Secrets, personal data, hidden characters and hidden text, instructions to language models, damaged or foreign text,
and, with models that a deployment names, names of people and toxic passages. `screen` takes a text and returns it
redacted, with its hits and its edits (`carry` moves offsets over them); `screen_all` does so for many named texts and
says which are blocked, with a reason that never repeats what was found. Fails with `DataError` when the policy is
malformed, with `ModelError` when a named model cannot be used.

    rules.py policy.py screen.py edits.py     the policy and its application
    credentials.py personal.py national_ids.py
    writing.py folding.py phrases.py other_languages.py instructions.py classifiers.py    the detectors
"""

from tasks.screening.edits import Edit, Edits, carry
from tasks.screening.personal import is_card
from tasks.screening.policy import DETECTORS, POLICY, Policy, load_policy
from tasks.screening.rules import Action, Detector, Models, Rule
from tasks.screening.screen import Outcome, Screened, screen, screen_all

__all__ = [
    "DETECTORS",
    "POLICY",
    "Action",
    "Detector",
    "Edit",
    "Edits",
    "Models",
    "Outcome",
    "Policy",
    "Rule",
    "Screened",
    "carry",
    "is_card",
    "load_policy",
    "screen",
    "screen_all",
]
