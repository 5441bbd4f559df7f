"""How much worse a candidate may surely get, for each measure that is judged: the margins of recipes that say nothing else.

Pure. `loss` guards slices only: on all rows it is the primary measure, which must get better. Times depend on the machine and on
who else uses it: they are judged only where a recipe gives them a margin, which is for machines that do nothing else.
"""

GUARDS: dict[str, float] = {
    "loss": 0.05,
    "token_f1": 0.05,
    "rouge_l": 0.05,
    "exact_match": 0.05,
    "similarity": 0.05,
    "groundedness": 0.10,
    "answered": 0.10,
    "refused": 0.02,
    "valid": 0.05,
}
ONLY_BY_RECIPE = ("seconds",)
# The widest that a recipe may name: beyond these a guard would be switched off in all but name.
WIDEST: dict[str, float] = dict.fromkeys(GUARDS, 0.25) | {"loss": 0.5, "refused": 0.1, "seconds": 60.0}
