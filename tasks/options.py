"""The options of a stage: strict, and each with where its value came from.

Fails with `OptionError`, naming every unknown or malformed option at once.
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
