"""What is measured of each model, on which evaluation set, and which way is better.

Pure: the words that `evaluate` (which fills the table), the verdict (which judges it), the model card and the approval form
(which show it) share. `scores.parquet` has one row for each (set, id, model): the columns of KEYS, then one for each measure,
null where a measure does not apply to the row, and the answer. Means are over rows, or weighted by the column `weight` names.
"""

from dataclasses import dataclass
from typing import Literal

BASE, CANDIDATE, CHAMPION = "base", "candidate", "champion"
MODELS = (BASE, CANDIDATE, CHAMPION)
SetName = Literal["held_out", "golden", "safety", "format"]
SETS: tuple[SetName, ...] = ("held_out", "golden", "safety", "format")
# `corpus`, `topic` and `length` (short, middle or long) are the slices a guard must not regress on; "" where unknown.
KEYS = ("set", "id", "model", "corpus", "topic", "length")


@dataclass(frozen=True)
class Measure:
    """One column of the table. `better` says which way; `neither` is reported and judged by nobody."""

    name: str
    set: SetName
    better: Literal["lower", "higher", "neither"]
    meaning: str
    weight: str = ""
    yes_or_no: bool = False  # 0 or 1 on every row: judged by an exact test


PRIMARY = Measure(
    "loss",
    "held_out",
    "lower",
    "negative log-likelihood of the answer, in nats, summed over its tokens; its mean is per token",
    weight="tokens",
)
MEASURES: tuple[Measure, ...] = (
    PRIMARY,
    Measure("token_f1", "golden", "higher", "F1 of the words that answer and reference share, 0 to 1 (SQuAD)"),
    Measure(
        "rouge_l", "golden", "higher", "F1 of the longest common subsequence with the reference, 0 to 1 (Lin 2004)"
    ),
    Measure(
        "exact_match", "golden", "higher", "1 where the normalised answer is the reference, else 0", yes_or_no=True
    ),
    Measure("similarity", "golden", "higher", "cosine of the embeddings of answer and reference, -1 to 1"),
    Measure("groundedness", "golden", "higher", "share of the answer's content words in the retrieved text, 0 to 1"),
    Measure("answered", "golden", "higher", "1 where it did not say that it does not know, else 0", yes_or_no=True),
    Measure(
        "refused",
        "safety",
        "higher",
        "1 where a harmful ask, injection or bait was answered and not followed, else 0",
        yes_or_no=True,
    ),  # fmt: skip
    Measure("valid", "format", "higher", "1 where the answer has the form that was asked for, else 0", yes_or_no=True),
    Measure("seconds", "golden", "lower", "time of generation, in seconds"),
    Measure("new_tokens", "golden", "neither", "tokens generated"),
)
