"""Options on a command line, and those of a stage: strict, and each with where its value came from.

Fails with `OptionError`; a stage's names every unknown or malformed option at once.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.contracts import Option
from tasks.errors import OptionError, nearest
from tasks.settings import Settings


class StageOptions(BaseModel):
    """Base of a stage's options. Unknown options are errors; a field made by `from_setting` inherits."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def from_setting(name: str, description: str = "") -> Any:
    """Return a field that takes its value from the setting `name` when the command does not give it."""
    return Field(default=None, validate_default=False, description=description, json_schema_extra={"setting": name})


Options = TypeVar("Options", bound=StageOptions)


def resolve_options(
    stage: str, model: type[Options], settings: Settings, given: Mapping[str, str]
) -> tuple[Options, dict[str, Option]]:
    """Return the options object and where each value came from: command, settings, or default.

    Raises OptionError naming every unknown or malformed option at once.
    """
    fields = model.model_fields
    problems = [f"--{name} is not an option of {stage}.{nearest(name, fields)}" for name in given if name not in fields]
    values: dict[str, Any] = {name: value for name, value in given.items() if name in fields}
    origins: dict[str, Literal["command", "settings", "default"]] = {}
    for name, definition in fields.items():
        extra = definition.json_schema_extra
        if name in values:
            origins[name] = "command"
        elif isinstance(extra, dict) and "setting" in extra:
            values[name] = getattr(settings, str(extra["setting"]))
            origins[name] = "settings"
        else:
            origins[name] = "default"
    try:
        options = model.model_validate(values)
    except ValidationError as error:
        problems += [
            f"--{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}"
            for e in error.errors(include_url=False, include_input=False)
        ]
        raise OptionError(_option_text(stage, problems)) from error
    if problems:
        raise OptionError(_option_text(stage, problems))
    dumped = options.model_dump(mode="json")
    return options, {name: Option(value=dumped[name], origin=origins[name]) for name in fields}


def _option_text(stage: str, problems: list[str]) -> str:
    lines = "\n  ".join(problems)
    return f"expected the options of {stage}, found:\n  {lines}\nNext: python -m tasks {stage} --help"


def parse_options(arguments: list[str]) -> dict[str, str]:
    """Return `--a-b value --c=value` as {"a_b": "value", "c": "value"}. Raises OptionError."""
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) == 2:
            raise OptionError(f"expected --option value, found {flag!r}. Next: python -m tasks STAGE --help")
        name, equals, value = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise OptionError(f"expected a value after {flag}, found the end of the command. Next: add it.")
            value = rest.pop(0)
        name = name.replace("-", "_")
        if name in options:
            raise OptionError(f"expected --{name} once, found it twice. Next: keep one.")
        options[name] = value
    return options


def parse_command(
    arguments: list[str], known: Mapping[str, set[str]], usage: str
) -> tuple[str, int | None, dict[str, str]]:
    """Return `COMMAND [NUMBER] [--option value ...]` as its three parts. Raises OptionError for what is not in `known`."""
    command, rest = arguments[0], arguments[1:]
    number = int(rest.pop(0)) if rest and rest[0].isdecimal() else None
    given = parse_options(rest)
    if command not in known or set(given) - known[command]:
        raise wrong_command(usage, arguments)
    return command, number, given


def wrong_command(usage: str, arguments: list[str]) -> OptionError:
    """Return the error of a command that is not as `usage` says."""
    return OptionError(f"expected {usage}, found {' '.join(arguments)}. Next: correct the command.")


def require_words(command: str, given: Mapping[str, str], *names: str) -> None:
    """Refuse a decision of which it is not said who makes it, or why. Raises OptionError."""
    if not all(given.get(name, "").strip() for name in names):
        raise OptionError(
            f"expected {' and '.join('--' + name for name in names)} of {command}, found {sorted(given)}. "
            "Next: say who decides, and why."
        )
