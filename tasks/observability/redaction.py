"""Which values of an environment are secrets, and texts without them.

Reads the environment it is given. Writes nothing, fails never. Used by every line of the log and by every finding of
the doctor, so that there is one meaning of "secret".
"""

import os
import re
from collections.abc import Callable, Mapping

HIDDEN = "***"
# The name of a Kubernetes secret is none.
_NO_SECRETS = {"MILLRACE_KUBERNETES_SECRET"}
_SECRET_NAME = re.compile(r"(^|_)(KEY|PASSWORD|SECRET|TOKEN|CREDENTIALS|WEBHOOK)(_|$)")
_IN_URL = re.compile(r"(://)[^/@\s]*@")
_IN_CONNINFO = re.compile(r"(?i)(password\s*=\s*)('[^']*'|\S+)")
_LEAST_SECRET = 4  # shorter values would blot out ordinary words


def hidden(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return a text with every password and key of the environment blotted out, and whatever a URL holds as one."""
    return hider(environment)(text)


def hider(environment: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Return `hidden` for the environment as it is now: for who hides in many texts."""
    values = secrets(os.environ if environment is None else environment)

    def hide(text: str) -> str:
        for value in values:
            text = text.replace(value, HIDDEN)
        return _IN_CONNINFO.sub(rf"\1{HIDDEN}", _IN_URL.sub(rf"\1{HIDDEN}@", text))

    return hide


def secrets(environment: Mapping[str, str]) -> list[str]:
    """Return the values that must not be shown, longest first: secrets by name, and passwords inside URLs."""
    found = set()
    for name, value in environment.items():
        if _SECRET_NAME.search(name.upper()) and name not in _NO_SECRETS:
            found.add(value)
        if match := re.search(r"://[^/@\s:]*:([^/@\s]+)@", value):
            found.add(match[1])
    return sorted((value for value in found if len(value) >= _LEAST_SECRET), key=len, reverse=True)
