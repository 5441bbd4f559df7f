"""The stage contract: how a stage is declared, run, and proven complete.

A stage module declares `STAGE = Stage(...)`. `run_stage` resolves its options, loads and verifies the
manifests of the stages it needs, runs it, and writes `RUN/STAGE/manifest.json` last. A complete (or
refused) manifest with the same fingerprint is returned as it is: the work is not done again.

Fails with the errors of `tasks.errors`; on SIGTERM with `Preempted`, and then no manifest is written.
"""

import json
import logging
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Literal

from tasks.contracts import Artifact, Manifest, digest, digest_of, manifest_uri, stage_uri
from tasks.database import connect
from tasks.energy import Meter
from tasks.errors import ManifestError, Preempted, ServiceUnavailable
from tasks.observability.trace import of_stage
from tasks.options import Options, StageOptions, from_setting, resolve_options
from tasks.provenance import code_revision, resources
from tasks.settings import Settings
from tasks.storage import Storage

log = logging.getLogger(__name__)

__all__ = ["Stage", "StageContext", "StageOptions", "StageResult", "code_revision", "from_setting", "run_stage"]


@dataclass(frozen=True)
class StageResult:
    """What a stage ends with. `refused` is a gate that says no: give `reason`."""

    outputs: Mapping[str, Artifact] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    status: Literal["complete", "refused"] = "complete"
    reason: str | None = None
    base_model: str | None = None
    gpus: int = 0


@dataclass(frozen=True)
class Stage(Generic[Options]):
    """A named piece of work. `needs` are earlier stages of the same run; their manifests become inputs.

    `graceful` stages look at `context.stopping()` themselves and raise Preempted after saving;
    all others are interrupted by SIGTERM where they stand. What a `fleeting` stage finds is true for the moment
    only: an earlier manifest of it never stands. `reads` returns what a stage reads besides options and inputs (what is
    live, say): an earlier manifest stands only while that is the same. `settings` returns the settings with which it runs from those of the
    environment, the options of the command, and the manifests it needs: a corpus has settings of its own.
    """

    name: str
    options: type[Options]
    run: "Callable[[StageContext, Options], StageResult]"
    needs: tuple[str, ...] = ()
    graceful: bool = False
    fleeting: bool = False
    settings: "Callable[[Settings, Mapping[str, str], Mapping[str, Manifest]], Settings] | None" = None
    reads: "Callable[[StageContext], Any] | None" = None


@dataclass
class StageContext:
    """What a running stage works with."""

    settings: Settings
    storage: Storage
    run: str
    stage: str
    part: str | None
    inputs: Mapping[str, Manifest]
    _stop: bool = False
    _last_progress: float = 0.0

    @property
    def folder(self) -> str:
        """The URI below which this stage writes."""
        return stage_uri(self.run, self.stage, self.part)

    @property
    def bucket(self) -> str:
        """`s3://BUCKET`, for what outlives a run (datasets, models)."""
        return f"s3://{self.settings.s3_bucket}"

    def input(self, stage: str, output: str) -> Artifact:
        """Return an output of a needed stage. Raises ManifestError when it has none of that name."""
        outputs = self.inputs[stage].outputs
        if output not in outputs:
            raise ManifestError(
                f"expected {stage} to have an output {output!r}, found {sorted(outputs)}. Next: clear {stage}."
            )
        return outputs[output]

    def parts(self, stage: str, names: Sequence[str]) -> list[Manifest]:
        """Return the verified manifests of the parts `names` of a mapped stage. Raises ManifestError when one is missing.

        Other parts may be there: an earlier try of the run, with other options, had more of them.
        """
        there = {uri for uri, _size, _etag in self.storage.list(f"{stage_uri(self.run, stage)}/part-")}
        missing = [name for name in names if manifest_uri(self.run, stage, name) not in there]
        if missing:
            raise ManifestError(
                f"expected {len(names)} complete parts of {stage}, found no manifest of {', '.join(missing[:5])}. "
                f"Next: clear {stage}."
            )
        return [self.storage.require_manifest(self.run, stage, name) for name in names]

    def progress(self, done: float, total: float, unit: str, quiet: bool = False) -> None:
        """Record how far the stage is, at most once a second: `progress.json` for whoever watches, and a log line
        (unless `quiet`, for stages with a line of their own). A store that does not answer is told, and waited for by
        what has to be written: a training must not end because somebody could not watch it.
        """
        now = time.monotonic()
        if now - self._last_progress < 1.0 and done < total:
            return
        self._last_progress = now
        if not quiet:
            log.info("progress stage=%s done=%g total=%g unit=%s", self.stage, done, total, unit)
        value = {"done": done, "total": total, "unit": unit, "at": datetime.now(UTC).isoformat()}
        try:
            self.storage.put_json(f"{self.folder}/progress.json", value)
        except ServiceUnavailable as error:
            log.warning("progress cannot be told now: %s", error)

    def stopping(self) -> bool:
        """Return whether SIGTERM has arrived (graceful stages only)."""
        return self._stop


def run_stage(stage: Stage[Any], settings: Settings, run: str, part: str | None, given: Mapping[str, str]) -> Manifest:
    """Run `stage` for the run folder `run` with the options `given` on the command line; return its manifest."""
    storage = Storage(settings.s3_endpoint_url)
    inputs = {name: storage.require_manifest(run, name) for name in stage.needs}
    if stage.settings is not None:
        settings = stage.settings(settings, given, inputs)
    options, resolved = resolve_options(stage.name, stage.options, settings, given)
    context = StageContext(settings, storage, run, stage.name, part, inputs)
    identity: dict[str, Any] = {
        "stage": stage.name,
        "part": part,
        "options": {name: option.value for name, option in resolved.items()},
        "inputs": {name: [digest_of(m.outputs), m.facts, m.counts] for name, m in inputs.items()},
        "code": code_revision(settings),
    }
    if stage.reads is not None:
        identity["reads"] = stage.reads(context)
    fingerprint = digest(identity)
    before = _standing(storage, f"{context.folder}/manifest.json", None if stage.fleeting else fingerprint)
    if before is not None:
        log.info(
            "stage=%s status=%s unchanged: the manifest of %s stands",
            stage.name,
            before.status,
            before.ended_at,
        )
        return before
    started, clock = datetime.now(UTC), time.monotonic()
    log.info("stage=%s run=%s part=%s trace=%s start", stage.name, run, part, of_stage(run, os.environ).trace_id)
    with _sigterm(context, graceful=stage.graceful):
        with Meter() as meter:
            result = stage.run(context, options)
        manifest = Manifest(
            stage=stage.name,
            part=part,
            run=run,
            status=result.status,
            reason=result.reason,
            fingerprint=fingerprint,
            inputs={
                f"{name}/{output}": artifact for name, m in inputs.items() for output, artifact in m.outputs.items()
            },
            outputs=dict(result.outputs),
            counts=dict(result.counts),
            metrics=dict(result.metrics) | _energy(meter, result),
            facts=dict(result.facts),
            options=resolved,
            code_revision=code_revision(settings),
            image_digest=settings.image_digest,
            base_model=result.base_model,
            host=platform.node(),
            started_at=started,
            ended_at=datetime.now(UTC),
            resource_seconds=resources(time.monotonic() - clock, result.gpus),
        )
        manifest.reference()  # refuses a reference too large for XCom before anything is declared complete
        storage.write_manifest(manifest)
    _record_cost(manifest)
    log.info("stage=%s status=%s counts=%s manifest=%s", stage.name, manifest.status, manifest.counts, manifest.uri)
    return manifest


def _energy(meter: Meter, result: StageResult) -> dict[str, float]:
    """Return what the GPUs took, of a stage that used some and where they told it."""
    if not result.gpus:
        return {}
    if meter.joules is None:
        log.warning("nvidia-smi told no power of a GPU twice, or is not here: the energy is not known")
        return {}
    return {"gpu_energy_joules": round(meter.joules, 1)}


def _standing(storage: Storage, uri: str, fingerprint: str | None) -> Manifest | None:
    """Return the manifest at `uri` if it still holds: the same fingerprint, and its bytes are there.

    One that does not hold is removed before the work begins, so that it cannot vouch for work that is cut short.
    """
    try:
        before = storage.read_manifest(uri)
        if before is None:
            return None
        if before.fingerprint == fingerprint:
            for artifact in before.outputs.values():
                storage.verify(artifact)
            return before
    except ManifestError as error:
        log.warning("the manifest of an earlier attempt is damaged, the work is done again: %s", error)
    storage.delete_prefix(uri)
    return None


def _record_cost(manifest: Manifest) -> None:
    """Add the row of `stage_costs`. The manifest already holds the figures, so an absent database costs only the row."""
    try:
        with connect(vectors=False) as connection:
            connection.execute(
                "INSERT INTO stage_costs (run, stage, part, status, started_at, ended_at, resource_seconds, host) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s::jsonb, %s)",
                (
                    manifest.run,
                    manifest.stage,
                    manifest.part,
                    manifest.status,
                    manifest.started_at,
                    manifest.ended_at,
                    json.dumps(manifest.resource_seconds),
                    manifest.host,
                ),
            )
    except ServiceUnavailable as error:
        log.warning("stage=%s its cost is in the manifest only: %s", manifest.stage, error)


@contextmanager
def _sigterm(context: StageContext, *, graceful: bool) -> Iterator[None]:
    """Turn SIGTERM into Preempted, or into `context.stopping()` for a graceful stage."""

    def stop(_number: int, _frame: object) -> None:
        context._stop = True
        if not graceful:
            raise Preempted(
                f"expected {context.stage} to end, found SIGTERM (pid {os.getpid()}). Next: it will be tried again."
            )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
