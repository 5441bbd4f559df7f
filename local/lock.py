"""`make lock`: resolve requirements/*.in into requirements/*.txt with pip-tools.

Reads `requirements/NAME.in`, the present `NAME.txt` (whose pins are kept where they still fit; delete it
to take the newest) and the package index that pip is set up with. Writes `requirements/NAME.txt` whole, or
leaves it as it was. Ends with 2 when the resolver says no.

`local` comes first: the others are constrained by it, so one version of a package is tested everywhere.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
LOCKS = ("local", "models-no-deps", "stage", "cuda-no-deps", "airflow", "mlflow", "development")
HEADER = "# Made by `make lock` from requirements/{name}.in. Do not edit; see requirements/README.md.\n"
OPTIONS = [
    "--quiet",
    "--no-header",
    "--strip-extras",
    "--allow-unsafe",
    "--no-emit-index-url",
    "--no-emit-trusted-host",
    "--no-emit-find-links",
]
# A wheel built for one machine, such as 2.13.0+cpu, satisfies ==2.13.0; the other way round it does not.
LOCAL_VERSION = re.compile(r"^([a-z0-9._-]+==[^\s+]+)\+[a-z0-9.]+", re.MULTILINE | re.IGNORECASE)


def strip_local_versions(lock: str) -> str:
    """Return `lock` with pins such as `torch==2.13.0+cpu` written `torch==2.13.0`."""
    return LOCAL_VERSION.sub(r"\1", lock)


def compile_lock(name: str) -> bool:
    """Resolve one lock; True when the file is written."""
    source, target = REQUIREMENTS / f"{name}.in", REQUIREMENTS / f"{name}.txt"
    if name.endswith("-no-deps"):
        # Nothing to resolve: the point of this file is that its packages' own requirements are not installed.
        pins = [line for line in source.read_text().splitlines() if line and not line.startswith("#")]
        target.write_text(HEADER.format(name=name) + "\n".join(pins) + "\n")
        return True
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f"{name}.txt"
        if target.exists():
            draft.write_text(target.read_text())
        command = [sys.executable, "-m", "piptools", "compile", *OPTIONS]
        command += ["--output-file", str(draft), str(source.relative_to(REQUIREMENTS.parent))]
        if subprocess.run(command, cwd=REQUIREMENTS.parent, check=False, stdout=subprocess.DEVNULL).returncode:
            return False
        target.write_text(HEADER.format(name=name) + strip_local_versions(draft.read_text()))
    return True


def main(names: list[str]) -> int:
    """Resolve the locks named, or all."""
    for name in names or LOCKS:
        print(f"requirements/{name}.txt", flush=True)
        if not compile_lock(name):
            print(
                f"expected: requirements/{name}.in to resolve; found: pip-compile ended with an error (above).\n"
                f"Next: relax the pin it names, or check the package index (`pip index versions PACKAGE`).",
                file=sys.stderr,
            )
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
