"""The errors a stage ends with, and the exit code each one means.

    MillraceError                 1   a bug: nobody expected it
    ├── BadInput                  2   bad input or settings: do not retry
    │   ├── SettingsError             an environment variable is unknown, missing or malformed
    │   ├── OptionError               a stage option is unknown, missing or malformed
    │   ├── RecipeError               a recipe file has a wrong or misspelt key
    │   ├── CorpusError               a corpus cannot be read, or holds nothing
    │   ├── DataError                 examples, questions or requests are malformed
    │   ├── ModelError                a model reference or folder cannot be used
    │   ├── TrainingDiverged          the loss went wrong; the same inputs would go the same way
    │   ├── ManifestError             an input stage is missing, incomplete or damaged
    │   ├── ReproductionError         a training cannot be done again as it was
    │   ├── EvidenceError             the scores that a verdict needs are missing, broken or about other rows
    │   ├── ReleaseError              a release cannot be made, found or restored
    │   │   ├── PartGone              a part of an earlier release is gone or was changed
    │   │   └── ApprovalError         an answer does not approve: by nobody who may, without a reason or its origin
    │   │       ├── ApprovalExpired   ... given too long ago
    │   │       └── ApprovalReused    ... given to another proposal, or to one that changed since
    │   └── SignatureError            a release is not signed by an accepted key, or is not what was signed
    ├── GateRefused               3   a gate said no: a result, not an outage
    └── TryAgain                 75   retry later
        ├── ServiceUnavailable        Postgres, S3 or MLflow did not answer
        └── Preempted                 SIGTERM: the stage saved what it could

Every text says what was expected, what was found, and the next step. All of them survive pickling
(stages cross process borders), because their only argument is the text.
"""

import difflib
from collections.abc import Iterable


class MillraceError(Exception):
    """Base of all errors of Millrace; raised itself only for what nobody expected."""

    exit_code = 1


class BadInput(MillraceError):
    """Input or settings are wrong; a retry would fail the same way."""

    exit_code = 2


class SettingsError(BadInput):
    """An environment variable is unknown, missing or malformed."""


class OptionError(BadInput):
    """A stage option is unknown, missing or malformed."""


class RecipeError(BadInput):
    """A recipe file has a wrong or misspelt key, or values that do not fit together."""


class CorpusError(BadInput):
    """A corpus cannot be read, or holds nothing."""


class DataError(BadInput):
    """Training examples, golden questions or requests are malformed."""


class ModelError(BadInput):
    """A model reference or a model folder cannot be used."""


class TrainingDiverged(BadInput):
    """The loss of a training is not finite or stays high; the same inputs and seed would go the same way."""


class ManifestError(BadInput):
    """The manifest of an input stage is missing, incomplete, or names bytes that are not there."""


class ReproductionError(BadInput):
    """A training cannot be done again as it was, or what was done is not that training."""


class EvidenceError(BadInput):
    """The scores that a verdict needs are missing, broken, or about other rows. The gate turns it into hold."""


class ReleaseError(BadInput):
    """A release cannot be made, found or restored."""


class SignatureError(BadInput):
    """A release is not signed by an accepted key, or is not what was signed."""


class ApprovalError(ReleaseError):
    """An answer in the approval form does not approve this release."""


class ApprovalExpired(ApprovalError):
    """An approval was given too long ago."""


class ApprovalReused(ApprovalError):
    """An approval was given to another proposal, or to one that has changed since."""


class PartGone(ReleaseError):
    """A part of an earlier release is gone or was changed: it cannot be restored, others may."""


class GateRefused(MillraceError):
    """A gate said no. The evidence is in the manifest, whose status is `refused`."""

    exit_code = 3


class TryAgain(MillraceError):
    """The work may succeed later without any change."""

    exit_code = 75


class ServiceUnavailable(TryAgain):
    """Postgres, S3 or MLflow did not answer."""


class Preempted(TryAgain):
    """The stage was told to stop (SIGTERM) and saved what it could."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the known name closest to `name`, or an empty text."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {found[0]!r}?" if found else ""
