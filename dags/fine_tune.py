"""Train a candidate model, compare it with the champion, and register it if it is better.

**What it does**

Builds a dataset from curated examples, accepted feedback and the corpus (mixed by the recipe), freezes it by its digest,
reports its tokens and what the training will cost before a GPU is asked for, fine-tunes the base model with DeepSpeed, scores
base, candidate and champion on the same held-out rows, and lets a gate decide. A candidate with the verdict `promote` or
`review` is registered in MLflow; with `review` only a person releases it. The same inputs again train 0 steps. `preflight` comes first.

**Parameters**

- `recipe`: the training recipe (a file of `tasks/training/recipes/`); empty takes `MILLRACE_RECIPE`.
- `examples`: another source of training examples; empty takes `MILLRACE_EXAMPLES`.
- `gpus`: GPUs of each node; with the process launcher the number that the machine has, all of which it uses.
- `nodes`: nodes that train together, as many as `distribution.nodes` of the recipe says (above 1 only on Kubernetes).
- `adapter`: an adapter in S3 to start from, for example the champion's before a `dpo_lora`; empty starts from the base model.
- `decision`: the drift decision that asked for this run (set by `watch_drift`).

**Assets in and out**

In: none (by hand, or by `watch_drift`). Out: `candidate_model`, if the gate lets it pass: starts `promote_release`.

**When it fails**

A gate that says `hold` is a result, not a failure: `gate` and `register` are skipped, the run succeeds, and the reason is in the
XCom and manifest of `gate`. The run fails for what has to be mended first (`preflight`), for rejected data (`validate_dataset`: no
good row left on one side, or too many training rows that occur among held-out rows or golden questions), for what cannot be trained
(`plan_training`: too many rows cut short, a recipe that does not fit the model or the GPUs), for a GPU with too little memory, and
for a loss that goes wrong. A training that was stopped (spot notice, lost node) is tried again and goes on from its newest
checkpoint. To stop one, mark `train` as failed; to go on, clear it in the same run.
"""

from datetime import timedelta

from airflow.sdk import Param, chain, dag
from millrace_assets import CANDIDATE_MODEL
from millrace_defaults import DEFAULT_ARGS, RECIPES, Tag, schedule_start, tags
from millrace_stage import fact, stage


@dag(
    schedule=None,
    start_date=schedule_start(),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(days=3),
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.TRAINING),
    doc_md=__doc__,
    params={
        "recipe": Param(
            None, type=["null", "string"], title="Recipe", section="Training", examples=RECIPES,
            description="Name of a file in tasks/training/recipes. Empty: the setting MILLRACE_RECIPE.",
        ),
        "examples": Param(
            None, type=["null", "string"], title="Examples", section="Training", examples=["docstrings:stdlib"],
            description="docstrings:stdlib, a .jsonl file, or s3://bucket/file.jsonl. Empty: MILLRACE_EXAMPLES.",
        ),
        "gpus": Param(
            1, type="integer", minimum=1, maximum=8, title="GPUs", section="Compute", description="Of each pod."
        ),
        "nodes": Param(
            1, type="integer", minimum=1, maximum=64, title="Nodes", section="Compute",
            description="Training pods; distribution.nodes of the recipe.",
        ),
        "adapter": Param(
            None, type=["null", "string"], title="Start from the adapter", section="Training",
            description="s3://bucket/folder of an adapter of the same base model. Empty: start from the base model.",
        ),
        "decision": Param(
            None, type=["null", "string"], title="Drift decision", section="Origin", description="Set by watch_drift."
        ),
    },
)  # fmt: skip
def fine_tune():
    what = {"recipe": "{{ params.recipe }}", "adapter": "{{ params.adapter }}"}
    origin = {"examples": "{{ params.examples }}", "decision": "{{ params.decision }}"}
    built = stage("build_dataset", recipe=what["recipe"], **origin)
    validated = stage("validate_dataset")
    gpus, nodes = "{{ params.gpus }}", "{{ params.nodes }}"
    planned = stage("plan_training", gpus_per_node=gpus, node_count=nodes, **what)
    trained = stage("train", gpus=gpus, nodes=nodes, retries=4, timeout=timedelta(hours=48), **what)
    evaluated = stage("evaluate", gpus=fact("plan_training", "evaluation_gpus"), timeout=timedelta(hours=6))
    gated = stage("gate", on_refusal="skip")  # `promote` and `review` go on, `hold` is refused
    # Dangerous edge: registering makes the model a candidate for release. No path leads here around the gate.
    registered = stage("register", outlets=[CANDIDATE_MODEL])
    chain(stage("preflight"), built, validated, planned, trained, evaluated, gated, registered)


fine_tune()
