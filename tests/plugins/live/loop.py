"""DAGs for tests/plugins/test_scheduler.py: the real operators, assets and approval around the fixture stage."""

from datetime import timedelta

from airflow.sdk import chain, dag
from millrace_approval import ReleaseApproval
from millrace_assets import CANDIDATE_MODEL, KNOWLEDGE_INDEX, newest_manifest
from millrace_choice import ReleaseChoice
from millrace_process import ProcessStage
from millrace_stage import parts_of, stage, stage_parts
from millrace_trigger import TriggerDecided

ProcessStage.module = "fixture_stage"
DEFAULTS = {"retries": 1, "retry_delay": timedelta(seconds=1)}
END, FACTS = "{{ params.get('end', 'complete') }}", "{{ params.get('facts', '{}') }}"


@dag(schedule=None, default_args=DEFAULTS)
def build():
    planned = stage("plan", end="complete", facts=FACTS)
    made = stage_parts("make", parts=parts_of(planned.output), end="complete")
    checked = stage("check", end="complete", trigger_rule="none_failed")
    switched = stage("switch", end=END, skip_when="noop", outlets=[KNOWLEDGE_INDEX])
    chain(made, checked, switched)


@dag(schedule=None, default_args=DEFAULTS)
def tune():
    gated = stage("gate", end=END, on_refusal="skip")
    chain(gated, stage("register", end="complete", outlets=[CANDIDATE_MODEL]))


@dag(
    schedule=(CANDIDATE_MODEL | KNOWLEDGE_INDEX),
    default_args=DEFAULTS,
    user_defined_macros={"newest": newest_manifest},
)
def release():
    proposed = stage(
        "propose",
        end="complete",
        facts='{{ params.get(\'facts\') or \'{"needs_approval": false, "subject": "s", "body": "b"}\' }}',
        candidate="{{ newest(triggering_asset_events, 'candidate_model') }}",
        index="{{ newest(triggering_asset_events, 'knowledge_index') }}",
    )
    answer = "ti.xcom_pull(task_ids='approve')"
    promoted = stage(
        "promote",
        end="complete",
        approved_by=f"{{{{ {answer}['responded_by_user']['name'] }}}}",
        reason=f"{{{{ {answer}['params_input'].get('reason') or '' }}}}",
        proposal_sha256=f"{{{{ {answer}.get('proposal_sha256') or 'missing' }}}}",
    )
    chain(proposed, ReleaseApproval(task_id="approve"), promoted)


@dag(schedule=None, default_args=DEFAULTS, params={"release": None, "reason": None})
def back():
    chosen = "ti.xcom_pull(task_ids='choose')"
    restored = stage(
        "roll_back",
        end="complete",
        release=f"{{{{ {chosen}['release'] }}}}",
        reason=f"{{{{ {chosen}['reason'] }}}}",
        approved_by=f"{{{{ {chosen}['by'] }}}}",
    )
    chain(stage("list_releases", end="complete", facts=FACTS), ReleaseChoice(task_id="choose"), restored)


@dag(schedule=None, default_args=DEFAULTS)
def decide():
    chain(stage("decide", end="complete", facts=FACTS), TriggerDecided(task_id="trigger"))


@dag(schedule=None, default_args=DEFAULTS)
def hang():
    stage("train", end="linger", retries=0, pids="{{ params.get('pids', '') }}")


build()
tune()
release()
back()
decide()
hang()
