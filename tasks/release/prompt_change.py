"""What a new prompt says otherwise, for the person who approves it: digests tell nobody what changed.

Pure. Reads the two texts; returns Markdown, cut at a limit and saying so, because the form goes through XCom.
"""

import difflib
import re

_LINES, _SIGNS = 60, 2000


def told(before: str, after: str) -> list[str]:
    """Return the unified difference of two prompts in a fence, or nothing where they are the same."""
    if before == after:
        return []
    found = list(difflib.unified_diff(before.splitlines(), after.splitlines(), "live", "proposed", n=1, lineterm=""))
    shown: list[str] = []
    for line in found[:_LINES]:
        room = _SIGNS - sum(map(len, shown))
        if len(line) > room:
            shown.append(line[: max(0, room - 3)] + "...")
            break
        shown.append(line)
    if not found:  # only what splitlines does not keep differs
        shown = ["(the same lines; blanks or line ends at the end differ)"]
    left = len(found) - len(shown)
    more = [f"{left} more lines: see `prompt.md` in the folder of `propose`."] if left > 0 else []
    # Longer than any run of backticks inside, so that a prompt cannot end the fence.
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", before + after))])
    return ["What the prompt says otherwise:", "", f"{fence}diff", *shown, fence, *more]
