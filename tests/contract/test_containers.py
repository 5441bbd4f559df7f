"""The files of docker/ and docker-compose*.yml keep what they promise; no engine is needed for it (tests/compose has one)."""

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tasks.settings import REPOSITORY, variable_names
from tests.compose.project import made_values

DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))
COMPOSE = sorted(REPOSITORY.glob("docker-compose*.yml"))
# What docker-compose.yml says itself, or what only the Kubernetes launcher reads.
SAID = re.compile(
    "DATABASE_URL|S3_|MLFLOW_TRACKING_URI|LAUNCHER|ASSISTANT_(?:URL|KEY)|CACHE_DIR|CODE_REVISION|IMAGE_DIGEST|STAGE_IMAGE|KUBERNETES_|"
    "GPU_POOL|GPU_POD|POD_|NODE_RANK|MASTER_ADDRESS|AIRFLOW_DATABASE|MLFLOW_DATABASE|ADMIN_DATABASE|BACKUP_|POSTGRES_TOOLS|SIGNING_KEY"
)


def names(text: str) -> set[str]:
    """Return the variables that a Compose file reads."""
    passed_through = set(re.findall(r"^ +([A-Z0-9_]+):$", text, re.MULTILINE))
    return set(re.findall(r"\$\{([A-Z0-9_]+)", text)) | passed_through


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Any) -> None:
    command = shutil.which("hadolint", path=REPOSITORY / ".venv" / "bin")
    assert command, "expected hadolint of requirements/development.txt. Next: make setup"
    done = subprocess.run([command, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_labelled_and_ends_as_somebody_who_may_little(path: Any) -> None:
    stages = re.split(r"^FROM ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    final = [stage for stage in stages if "LABEL" in stage]
    assert final and all("org.opencontainers.image.revision=" in stage for stage in final)
    for stage in final:
        user = re.findall(r"^USER (\S+)", stage, re.MULTILINE)[-1]
        assert user in {"10001:10001", "50000:0"}, stage.splitlines()[0]


def test_every_variable_of_the_compose_files_is_in_the_example_file() -> None:
    read = set().union(*(names(path.read_text(encoding="utf-8")) for path in COMPOSE))
    listed = set(
        re.findall(r"^#([A-Z0-9_]+)=", (REPOSITORY / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert read <= listed
    of_compose = {name for name in listed if not name.startswith("MILLRACE_")}
    assert of_compose <= read, "no Compose file reads it (any more)"


def test_every_setting_goes_through() -> None:
    passed = set(yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))["x-settings"])
    wanted = {name for name in variable_names() if not SAID.match(name.removeprefix("MILLRACE_"))}
    assert passed == wanted | {"HF_TOKEN"}


@pytest.mark.parametrize("further", [[], ["docker-compose.gpu.yml"]], ids=["cpu", "gpu"])
def test_an_image_that_is_not_pulled_is_built_by_a_service(further: list[str]) -> None:
    """Merged by image and build alone; tests/compose asks Compose itself."""
    services: dict[str, dict[str, Any]] = {}
    for name in ["docker-compose.yml", *further]:
        for service, values in yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))["services"].items():
            services.setdefault(service, {}).update(values)
    built = {values["image"] for values in services.values() if "build" in values}
    shared = {values["image"] for values in services.values() if values.get("pull_policy") == "never"}
    assert shared and shared <= built


def test_no_secret_has_a_default() -> None:
    text = (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")
    made = {line.partition("=")[0] for line in made_values().splitlines() if "=" in line}
    required = set(re.findall(r"\$\{([A-Z0-9_]+):\?", text))
    assert required == {name for name in made if not name.startswith("MILLRACE_")}
    # What begins with MILLRACE_ is passed on where it is set, and a feature that is off without it.
    others = {name for name in names(text) - required if not name.startswith("MILLRACE_")}
    assert not {name for name in others if re.search(r"PASSWORD|SECRET|_KEY", name)}


def test_the_made_values_are_new_each_time_and_fit_into_urls() -> None:
    first, second = (dict(line.split("=", 1) for line in made_values().splitlines() if "=" in line) for _ in range(2))
    for name in set(first) - {"MILLRACE_SCHEDULE_START"}:
        assert first[name] != second[name], name
        assert re.fullmatch(r"[\w=-]{20,}", first[name]), name


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_ports_are_on_this_machine_only_and_images_are_pinned(path: Any) -> None:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    for name, service in found.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        tag = service.get("image", "x:1").rpartition(":")[2]
        assert tag and tag != "latest", name
