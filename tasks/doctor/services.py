"""Checks of S3 and MLflow: they are reached, written to and read, and the clock agrees with theirs.

What the checks write has a name of its own (`millrace-doctor-...`) and is removed when they end. In a bucket
with versioning an old version of 24 bytes stays, as it does of every object that is deleted there.
"""

import uuid
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tasks.doctor.database import address, reach
from tasks.doctor.examine import Place, making
from tasks.errors import BadInput, ServiceUnavailable, SettingsError

OURS = "millrace-doctor-"
CLOCK_SECONDS = 300  # S3 refuses signatures that are 15 minutes old; what is a third of that off is on its way there


def ports(place: Place) -> str:
    """Open a connection to each server that the settings name, without a word of its protocol."""
    told = []
    for service, setting, host, port in servers(place):
        if service != "Postgres" and through_a_proxy(host):
            told.append(f"{service} behind a proxy")
            continue
        reach(host, port, service, setting)
        told.append(f"{service} at {host}:{port}")
    return ", ".join(told) or "no server is named by host and port"


def servers(place: Place) -> list[tuple[str, str, str, int]]:
    """Return service, setting, host and port of what stages speak to."""
    host, port = address(place.settings.database_url.get_secret_value())
    found = [("Postgres", "MILLRACE_DATABASE_URL", host, port)] if host and not host.startswith(("/", "@")) else []
    urls = {"S3": place.settings.s3_endpoint_url, "MLflow": place.settings.mlflow_tracking_uri}
    names = {"S3": "MILLRACE_S3_ENDPOINT_URL", "MLflow": "MILLRACE_MLFLOW_TRACKING_URI"}
    for service, url in urls.items():
        parts = urlsplit(url or "")
        if parts.scheme in {"http", "https"} and parts.hostname:
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
            found.append((service, names[service], parts.hostname, port))
    return found


def through_a_proxy(host: str) -> bool:
    """Say whether HTTP to this host goes through a proxy of the environment."""
    return bool({"http", "https", "all"} & getproxies().keys()) and not proxy_bypass(host)


def bucket(place: Place) -> str:
    """Write, read, list and delete an object."""
    from tasks.storage import Storage

    storage = Storage(place.settings.s3_endpoint_url, attempts=2)
    uri = f"s3://{place.settings.s3_bucket}/{OURS}{uuid.uuid4().hex}"
    list(storage.list(uri))  # some servers make a missing bucket when something is written to it
    with making(place, lambda: storage.delete_prefix(uri)):
        artifact = storage.put_bytes(uri, b"written by millrace doctor\n")
    storage.get(artifact)
    if [name for name, _size, _etag in storage.list(uri)] != [uri]:
        raise BadInput(f"expected {uri} in the bucket's listing, found it missing. Next: allow s3:ListBucket.")
    return f"s3://{place.settings.s3_bucket} written, read, listed, deleted"


def clock(place: Place) -> str:
    """Compare this machine's clock with the one of S3, by the Date of an answer to a question without a signature."""
    before = datetime.now(UTC)
    theirs = date_of_s3(place)
    ours = before + (datetime.now(UTC) - before) / 2
    seconds = (ours - theirs).total_seconds()
    if abs(seconds) > CLOCK_SECONDS:
        word = "ahead of" if seconds > 0 else "behind"
        raise SettingsError(
            f"expected this clock within {CLOCK_SECONDS} s of S3's, found it {abs(seconds):.0f} s {word} it. "
            "Next: set the time (chrony, systemd-timesyncd); beyond 900 s every request is refused."
        )
    return f"within {max(1, round(abs(seconds)))} s of S3's"


def date_of_s3(place: Place) -> datetime:
    """Return the Date header of S3's answer; a refusal has one too. Raises ServiceUnavailable."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    endpoint = place.settings.s3_endpoint_url
    config = Config(
        signature_version=UNSIGNED, connect_timeout=5, read_timeout=10, retries={"max_attempts": 1},
        s3={"addressing_style": "path"} if endpoint else {},
    )  # fmt: skip
    try:
        client = boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
        answer: dict[str, Any] = client.head_bucket(Bucket=place.settings.s3_bucket)
    except ClientError as error:
        answer = error.response
    except BotoCoreError as error:
        raise ServiceUnavailable(
            f"expected S3 to answer, found {error}. Next: see the line of the bucket; try again."
        ) from error
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None:
        raise BadInput("expected a Date header in S3's answer, found none. Next: see what stands before S3.")
    return parsedate_to_datetime(date)


def registry(place: Place) -> str:
    """Register a model and a version of it in MLflow, read them back, and delete both."""
    from tasks.tracking import answering, public

    _answers(place.settings.mlflow_tracking_uri)
    server = public(place.settings.mlflow_tracking_uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    name = OURS + uuid.uuid4().hex
    try:
        with answering(place.settings) as client:
            with making(place, lambda: client.delete_registered_model(name)):
                client.create_registered_model(name, description="Made by `python -m tasks doctor`, which deletes it.")
            client.create_model_version(name, source=f"s3://{place.settings.s3_bucket}/{name}", await_creation_for=0)
            made = client.get_model_version(name, "1")
    except MlflowException as error:
        text = f"{error.error_code}: {error.message[:200]}"
        raise BadInput(
            f"expected to register a model at {server}, found {text}. Next: check MLFLOW_TRACKING_* and its permissions."
        ) from error
    return f"a model registered (version {made.version}) and deleted at {server}, MLflow client {mlflow.__version__}"


def _answers(server: str) -> None:
    """Ask once, briefly: MLflow's own client tries for half a minute. Any answer will do. Raises ServiceUnavailable."""
    import requests

    from tasks.tracking import public

    if not server.startswith(("http://", "https://")):
        return
    try:
        requests.get(server.rstrip("/") + "/health", timeout=(5, 10))
    except requests.exceptions.SSLError:
        return  # it answers; which certificates are right is known to MLflow's client
    except (requests.ConnectionError, requests.Timeout) as error:
        raise ServiceUnavailable(
            f"expected MLflow to answer at {public(server)}, found {type(error).__name__}. "
            "Next: start it (embedded stack: `make up`), or correct MILLRACE_MLFLOW_TRACKING_URI."
        ) from error
    except requests.RequestException as error:
        raise SettingsError(
            f"expected MILLRACE_MLFLOW_TRACKING_URI as http://host:port, found {public(str(error))}. Next: correct it."
        ) from error
