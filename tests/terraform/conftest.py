"""Terraform, the AWS provider and an emulator of AWS, where this machine has them; else the reason for the skip."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from tasks.settings import REPOSITORY

FOLDER = REPOSITORY / "infra" / "terraform"
PROVIDER = "terraform-provider-aws"
# Where Terraform itself looks, then where images of build machines put providers.
PLACES = (
    "~/.terraform.d/plugins",
    "~/.terraform.d/plugin-cache",
    "/usr/share/terraform/plugins",
    "/usr/local/share",
    "/opt",
)


@dataclass
class Terraform:
    """Runs terraform in a copy of infra/terraform."""

    folder: Path
    plugins: Path
    env: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        """Return what it printed; fail the test with it where the exit code is not as expected."""
        done = subprocess.run(
            ["terraform", *arguments],
            cwd=self.folder,
            env=clean_environment() | self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert (done.returncode != 0) == fails, done.stdout[-12000:]
        return done.stdout

    def init(self, *arguments: str) -> None:
        self("init", "-input=false", f"-plugin-dir={self.plugins}", *arguments)


def clean_environment() -> dict[str, str]:
    """Return the environment without anybody's AWS account and Terraform settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))}
    return kept | {
        "TF_CLI_CONFIG_FILE": os.devnull,
        "TF_IN_AUTOMATION": "1",
        "NO_COLOR": "1",
        "CHECKPOINT_DISABLE": "1",
    }


def plugins_folder() -> Path | None:
    """Return the folder of providers (above HOST/NAMESPACE/NAME/VERSION/PLATFORM) that holds the AWS provider."""
    places = [os.environ["TEST_TERRAFORM_PLUGINS"]] if "TEST_TERRAFORM_PLUGINS" in os.environ else PLACES
    for place in places:
        for above in ("", "*/"):
            pattern = f"{above}*/hashicorp/aws/*/*/{PROVIDER}*"
            for binary in sorted(Path(place).expanduser().glob(pattern), reverse=True):
                return binary.parents[5]
    return None


def copy_of(target: Path) -> Path:
    """Copy infra/terraform, without what terraform left in it."""
    shutil.copytree(FOLDER, target, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfbackend"))
    return target


@pytest.fixture(scope="session")
def plugins() -> Path:
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed")
    found = plugins_folder()
    if found is None:
        pytest.skip(f"{PROVIDER} is in none of {', '.join(PLACES)}; TEST_TERRAFORM_PLUGINS may name its folder")
    return found


@pytest.fixture(scope="session")
def planner(plugins: Path, tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    """A copy for everything that needs neither state nor AWS."""
    terraform = Terraform(copy_of(tmp_path_factory.mktemp("plan") / "terraform"), plugins)
    terraform.init("-backend=false")
    return terraform


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a moto server of our own, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("moto") / "log"
    server = Path(sys.executable).with_name("moto_server")
    with log.open("w") as output:
        process = subprocess.Popen(
            [server, "-H", "127.0.0.1", "-p", str(port)],
            env=clean_environment() | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers. Raises with its log when it ended or is silent for a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            requests.get(f"{url}/moto-api/", timeout=2)
        except requests.RequestException:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"expected moto_server to answer on {url}, found: {log.read_text()[-2000:]}")
