"""A checkpoint of one number of ranks, made ready for another.

ZeRO cuts the optimizer's state into one piece a rank, and its plain checkpoint can only be read by as many
ranks (deepspeedai/DeepSpeed#2898). DeepSpeed's universal checkpoint holds one file a parameter; its own tool,
`deepspeed.checkpoint.ds_to_universal`, makes it. Reads and replaces `checkpoint-N/global_stepM` in a job's
folder. Fails with `ModelError` when the tool does not convert it.
"""

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tasks.errors import ModelError
from tasks.training.ranks import without_credentials

log = logging.getLogger(__name__)


def convert(folder: Path, made_by: int, for_ranks: int) -> None:
    """Replace the checkpoint in `folder` by a universal one, which any number of ranks can read. Raises ModelError."""
    (plain,) = [path for path in folder.glob("global_step*") if path.is_dir()]
    universal = folder / f"{plain.name}_universal"
    log.info("the checkpoint was made by %d ranks: it is converted for %d", made_by, for_ranks)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"),
            *("--input_folder", str(plain), "--output_folder", str(universal), "--inject_missing_state"),
            *("--num_extract_workers", "1", "--num_merge_workers", "1"),
        ],
        env=without_credentials() | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not (folder / "latest_universal").is_file():
        raise ModelError(
            f"expected DeepSpeed to convert the checkpoint {folder.name} from {made_by} ranks, found exit code "
            f"{done.returncode}: {done.stderr.strip()[-600:]}. Next: take {made_by} ranks again, or clear the run's checkpoints."
        )
    shutil.rmtree(plain)


def universal(config: dict[str, Any]) -> dict[str, Any]:
    """Return a DeepSpeed configuration that reads a universal checkpoint."""
    return config | {"checkpoint": config.get("checkpoint", {}) | {"load_universal": True}}
