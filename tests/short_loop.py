"""The loop of `make demo` without its second training: that one starts, gathers what it would learn, and is stopped."""

import time
from datetime import datetime

from local.loop import Loop, LoopFailed


class ShortLoop(Loop):
    """Ends once the training that drift started has `last` of its stages behind it: the first training went all the way."""

    last = "build_dataset"

    def _drift(self, since: datetime) -> None:
        self._dag("drift", "watch_drift", {"since": since.isoformat(), "agree": 1})
        facts = self.findings.references["drift"]["decide"]["facts"]
        dag, run = facts["dag_id"], facts["dag_run_id"]
        self.progress.begin("retraining")
        end = time.monotonic() + 240
        while not (reference := self.airflow.reference(dag, run, self.last)):
            if time.monotonic() > end:
                raise LoopFailed(f"expected {self.last} of {dag} {run} to end within 4 minutes, found that it did not")
            time.sleep(1)
        self.findings.references["retraining"] = {self.last: reference}
        self.findings.started = self.airflow.run(dag, run)
        self.airflow.call("PATCH", f"dags/{dag}/dagRuns/{run}", json={"state": "failed"})
