"""`python -m tasks renew-reference --by WHO --reason WHY`: the nightly check's reference begins anew, now.

For a new usual that is no fault: longer questions, a second language, slower hardware. Until another model or prompt is
released, the check would alert about it every few nights. Writes a row of `drift_beginnings` and drops the frozen reference of
the live model and prompt; the next ones are compared with what comes from now on, once there is enough. Fails with `OptionError`.
"""

from tasks.database import connect
from tasks.errors import OptionError, nearest
from tasks.monitoring.references import REFERENCE_DAYS, begin_anew
from tasks.options import parse_options

_GIVEN = ("by", "reason")


def main(arguments: list[str]) -> int:
    """Begin anew; return 0."""
    options = parse_options(arguments)
    for name in options:
        if name not in _GIVEN:
            raise OptionError(f"expected --by and --reason, found --{name}.{nearest(name, _GIVEN)}")
    missing = [name for name in _GIVEN if not options.get(name, "").strip()]
    if missing:
        raise OptionError(
            f"expected --by and --reason, found no --{missing[0]}. "
            "Next: say who accepts what is usual now, and why: both are kept."
        )
    with connect(vectors=False) as connection:
        of = begin_anew(connection, options["by"], options["reason"])
    whose = f"of release {of.root}" if of.root else "of all requests"
    print(
        f"The reference {whose} begins anew now, and is frozen in {REFERENCE_DAYS} days. Until there are enough requests nothing is judged."
    )
    return 0
