"""What all DAGs share: retries, tags, and when a schedule starts."""

import os
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from airflow.sdk import CronTriggerTimetable

OWNER = "millrace"
DEFAULT_ARGS: dict[str, Any] = {
    "owner": OWNER,
    "retries": 2,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
}
# What the form suggests; a recipe of one's own may be typed. Not read from the folder: no file is read while a DAG is parsed.
RECIPES = [
    "sft_lora_zero2", "sft_lora_zero3_offload", "sft_full_zero3", "qlora", "dpo_lora", "pretrain_continue", "smoke_cpu", "demo",
]  # fmt: skip
# Fixed, so that a DAG is the same at every parse.
FALLBACK_START = datetime(2026, 1, 1, tzinfo=UTC)


class Tag(StrEnum):
    """The tags of the DAG list."""

    KNOWLEDGE = "knowledge"
    TRAINING = "training"
    RELEASE = "release"
    MONITORING = "monitoring"
    HOUSEKEEPING = "housekeeping"
    NIGHTLY = "nightly"
    WEEKLY = "weekly"
    MANUAL = "manual"


def tags(*chosen: Tag) -> list[str]:
    """Return tags as the plain texts that Airflow stores."""
    return [tag.value for tag in chosen]


def schedule_start() -> datetime:
    """Return the moment before which no slot is run: `MILLRACE_SCHEDULE_START`, or a fixed date.

    A cron DAG runs its latest slot after this moment as soon as it is unpaused, even without catchup; a
    fresh installation sets the variable to its own birth, so that nothing starts by itself before the night.
    """
    value = os.environ.get("MILLRACE_SCHEDULE_START", "")
    if not value:
        return FALLBACK_START
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(
            f"expected MILLRACE_SCHEDULE_START to be a moment like 2026-11-20T08:00:00+00:00, found {value!r}. Next: correct it."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def nightly(cron: str) -> CronTriggerTimetable:
    """Return the timetable of a cron line, in UTC."""
    return CronTriggerTimetable(cron, timezone="UTC")
