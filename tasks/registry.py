"""Every stage and every tool, by name, with the place of its code.

Modules are imported only when asked for, so that a cheap stage does not pay for torch.
"""

import importlib
from collections.abc import Callable
from typing import Any

from tasks.errors import OptionError, nearest
from tasks.stage import Stage

# Stage name -> module that declares STAGE.
STAGES = {
    "preflight": "tasks.doctor.preflight",
    "list_documents": "tasks.knowledge.list_documents",
    "read_documents": "tasks.knowledge.read_documents",
    "validate_documents": "tasks.knowledge.validate_documents",
    "index_documents": "tasks.knowledge.index_documents",
    "check_index": "tasks.knowledge.check_index",
    "switch_index": "tasks.knowledge.switch_index",
    "build_dataset": "tasks.training.build_dataset",
    "validate_dataset": "tasks.training.validate_dataset",
    "plan_training": "tasks.training.plan_training",
    "train": "tasks.training.train",
    "evaluate": "tasks.evaluation.evaluate",
    "gate": "tasks.evaluation.gate",
    "register": "tasks.release.register",
    "propose": "tasks.release.propose",
    "promote": "tasks.release.promote",
    "announce": "tasks.release.announce",
    "list_releases": "tasks.release.list_releases",
    "roll_back": "tasks.release.roll_back",
    "announce_rollback": "tasks.release.announce_rollback",
    "collect_requests": "tasks.monitoring.collect_requests",
    "report_drift": "tasks.monitoring.report_drift",
    "decide": "tasks.monitoring.decide",
    "retire": "tasks.housekeeping",
}

# Tool name -> "module:function"; the function takes the remaining arguments and returns an exit code.
TOOLS = {
    "migrate": "tasks.database:main",
    "serve": "tasks.serving.server:main",
    "search": "tasks.knowledge.search:main",
    "quarantine": "tasks.knowledge.quarantine_tool:main",
    "erase": "tasks.knowledge.erasure:main",
    "index": "tasks.knowledge.index_tool:main",
    "tune_index": "tasks.knowledge.tune_index:main",
    "doctor": "tasks.doctor.command:main",
    "renew_reference": "tasks.monitoring.renew_reference:main",
    "replay": "tasks.serving.replay:main",
    "choose_min_score": "tasks.serving.min_score:main",
    "shadow_report": "tasks.release.shadow_report:main",
    "signing_key": "tasks.release.signing_keys:main",
    "sign_release": "tasks.release.sign_release:main",
    "releases": "tasks.release.releases_tool:main",
    "rollback": "tasks.release.rollback_tool:main",
    "lineage": "tasks.release.lineage_tool:main",
    "backup": "tasks.backup.command:backup",
    "backups": "tasks.backup.command:backups",
    "verify_backup": "tasks.backup.command:verify_backup",
    "restore": "tasks.backup.command:restore",
    "reconcile": "tasks.backup.command:reconcile",
    "metrics": "tasks.observability.exporter:main",
    "reproduce": "tasks.training.reproduce:main",
}


def load_stage(name: str) -> Stage[Any]:
    """Return the stage called `name`. Raises OptionError with the nearest right name."""
    if name not in STAGES:
        raise OptionError(
            f"expected a stage or tool ({', '.join(sorted(STAGES | TOOLS))}), found {name!r}.{nearest(name, STAGES | TOOLS)}"
        )
    stage: Stage[Any] = importlib.import_module(STAGES[name]).STAGE
    return stage


def load_tool(name: str) -> Callable[[list[str]], int]:
    """Return the tool called `name`, a key of TOOLS."""
    module, function = TOOLS[name].split(":")
    tool: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return tool
