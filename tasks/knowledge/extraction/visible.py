"""Would a reader see an element of HTML? By its own attributes and its inline style; style sheets are not applied.

Reads and writes nothing but its arguments; never fails.
"""

import re

_STYLE = re.compile(r"\s*([a-z-]+)\s*:\s*([^;]*)", re.IGNORECASE)
_ZERO = re.compile(r"0+(\.0*)?(px|pt|em|rem|%)?(\s*!important)?")
_WHITE = {"#fff": "white", "#ffffff": "white", "#000": "black", "#000000": "black", "rgb(255,255,255)": "white"}


def is_invisible(attributes: dict[str, str | None]) -> bool:
    """Return whether an element's own attributes keep a reader from seeing it (`aria-hidden` does not)."""
    if "hidden" in attributes and (attributes["hidden"] or "").lower() != "until-found":
        return True
    found = {name.lower(): value.strip().lower() for name, value in _STYLE.findall(attributes.get("style") or "")}
    if found.get("display", "").startswith("none") or found.get("visibility", "").startswith(("hidden", "collapse")):
        return True
    if any(_ZERO.fullmatch(found.get(name, "1")) for name in ("font-size", "opacity")):
        return True
    ground = _colour(found.get("background-color") or found.get("background") or "")
    return bool(ground) and _colour(found.get("color", "")) == ground


def _colour(value: str) -> str:
    value = value.removesuffix("!important").strip().replace(" ", "")
    return _WHITE.get(value, value)
