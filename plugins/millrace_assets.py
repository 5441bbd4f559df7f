"""The assets of Millrace: what one DAG makes and another waits for.

An event carries `{"manifest": URI, "sha256": ..., "stage": ..., "counts": {...}}` as its extra, set by the
operator from the verified manifest. The data itself stays in S3, Postgres and MLflow.
"""

from typing import Any

from airflow.sdk import Asset

GROUP = "millrace"

KNOWLEDGE_INDEX = Asset(name="knowledge_index", uri="x-millrace://knowledge_index", group=GROUP)
CANDIDATE_MODEL = Asset(name="candidate_model", uri="x-millrace://candidate_model", group=GROUP)
RELEASE = Asset(name="release", uri="x-millrace://release", group=GROUP)
DRIFT_DECISION = Asset(name="drift_decision", uri="x-millrace://drift_decision", group=GROUP)


def newest_manifest(events: Any, name: str) -> str:
    """Return the manifest URI of the newest triggering event of the asset called `name`, or "" when it sent none.

    For templates: `{{ newest(triggering_asset_events, 'candidate_model') }}`. Several events may have
    started one run (they collapse while a run is active); only the newest counts.
    """
    found = [event for asset in events or () if asset.name == name for event in events[asset]]
    manifests = [event for event in found if (event.extra or {}).get("manifest")]
    return str(max(manifests, key=lambda event: event.timestamp).extra["manifest"]) if manifests else ""
