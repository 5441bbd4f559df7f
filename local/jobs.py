"""`python -m local.jobs NAME ...`: the short jobs between the servers' starts. Each is safe to repeat.

    initdb            make Postgres' data folder (needs nothing running)
    databases         create the databases airflow, mlflow, millrace, and the extension vector
    roles             the same with a role for each that owns it; its password becomes the one given (docker-compose.yml)
    bucket            create the bucket, write the object that S3's health check reads
    airflow-migrate   `airflow db migrate`, unless this version of Airflow already migrated this database
    mlflow-migrate    `mlflow db upgrade`, only when an older MLflow made this database
    millrace-migrate  `python -m tasks migrate`

Reads its addresses and credentials from the environment the supervisor gives it (PG*, AWS_*, and those named
below). Which version migrated a database is kept as a comment on the database, so that it goes where the data goes.
"""

import contextlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from local.errors import LocalError

DATABASES = ("airflow", "mlflow", "millrace")
NOTE = "migrated by "


def initdb() -> None:
    """Make Postgres' data folder."""
    from local.postgres import initialise

    initialise(Path(os.environ["MILLRACE_JOB_DATA"]), os.environ["PGPASSWORD"])


def databases() -> None:
    """Create what is missing."""
    import psycopg

    with psycopg.connect(dbname="postgres", autocommit=True) as connection:
        found = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        for name in DATABASES:
            if name not in found:
                connection.execute(f'CREATE DATABASE "{name}"')
                print(f"created database {name}")
    with psycopg.connect(dbname="millrace", autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")


def roles() -> None:
    """Give each database a role of its name that owns it, with the password of MILLRACE_JOB_ROLES (JSON by name)."""
    import psycopg
    from psycopg import sql

    passwords: dict[str, str] = json.loads(os.environ["MILLRACE_JOB_ROLES"])
    with psycopg.connect(dbname="postgres", autocommit=True) as connection:
        known = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
        found = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        for name in DATABASES:
            role = sql.Identifier(name)
            change = sql.SQL("ALTER" if name in known else "CREATE")
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(change, role, sql.Literal(passwords[name]))
            )
            if name not in found:
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
                print(f"created database {name}")
            # By default every role may connect to every database.
            connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(role))
    with psycopg.connect(dbname="millrace", autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")


def bucket() -> None:
    """Create the bucket, and write what the next start has to be able to read.

    The S3 server makes the bucket itself a moment after its start, so both orders are fine.
    """
    import boto3
    from botocore.config import Config

    from local.environment import PROBE

    config = Config(retries={"max_attempts": 5, "mode": "standard"}, connect_timeout=5, read_timeout=10)
    client = boto3.client("s3", endpoint_url=os.environ["MILLRACE_JOB_S3_URL"], config=config)
    name = os.environ["MILLRACE_JOB_BUCKET"]
    if name not in {one["Name"] for one in client.list_buckets()["Buckets"]}:
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)
            print(f"created bucket {name}")
    client.put_object(Bucket=name, Key=PROBE, Body=b"readable\n")


def _migrated_by(database: str) -> str | None:
    import psycopg

    query = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
    with psycopg.connect(dbname="postgres") as connection:
        row = connection.execute(query, (database,)).fetchone()
    note = row[0] if row else None
    return note.removeprefix(NOTE) if note and note.startswith(NOTE) else None


def _note_migration(database: str, package: str) -> None:
    import psycopg
    from psycopg import sql

    statement = sql.SQL("COMMENT ON DATABASE {} IS {}").format(
        sql.Identifier(database), sql.Literal(f"{NOTE}{package} {version(package)}")
    )
    with psycopg.connect(dbname="postgres", autocommit=True) as connection:
        connection.execute(statement)


def airflow_migrate() -> None:
    """Bring Airflow's database to the installed version."""
    if _migrated_by("airflow") == f"apache-airflow {version('apache-airflow')}":
        print("already migrated by the installed version")
        return
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True)
    _note_migration("airflow", "apache-airflow")


def mlflow_migrate() -> None:
    """Bring MLflow's database to the installed version; a new one is made by the server itself."""
    before = _migrated_by("mlflow")
    if before is not None and before != f"mlflow {version('mlflow')}":
        # Without a password in it: a command line is seen by everybody, PGPASSWORD is not.
        host, port = os.environ.get("PGHOST", "127.0.0.1"), os.environ.get("PGPORT", "5432")
        url = f"postgresql+psycopg2://{os.environ['PGUSER']}@{host}:{port}/mlflow"
        subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", url], check=True, env=as_owner("mlflow"))
    _note_migration("mlflow", "mlflow")


def as_owner(database: str) -> dict[str, str]:
    """Return the environment in which a client's tables belong to the owner of a database, not to the superuser."""
    import psycopg

    with psycopg.connect(dbname="postgres") as connection:
        row = connection.execute(
            "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", (database,)
        ).fetchone()
    return {**os.environ, "PGOPTIONS": f"-c role={row[0]}"} if row else dict(os.environ)


def millrace_migrate() -> None:
    """Bring the millrace database to this revision; the settings refuse variables that are no setting."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_JOB_")}
    subprocess.run([sys.executable, "-m", "tasks", "migrate"], check=True, env=environment)


JOBS = {
    "initdb": initdb,
    "databases": databases,
    "roles": roles,
    "bucket": bucket,
    "airflow-migrate": airflow_migrate,
    "mlflow-migrate": mlflow_migrate,
    "millrace-migrate": millrace_migrate,
}


def main(names: list[str]) -> int:
    """Run the jobs named, in that order, until one fails."""
    if not names or not set(names) <= set(JOBS):
        print(f"expected some of {', '.join(JOBS)}, found {names}", file=sys.stderr)
        return 2
    try:
        for name in names:
            print(f"{name} ...", flush=True)
            JOBS[name]()
    except LocalError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except subprocess.CalledProcessError as error:
        return error.returncode  # it has said why
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
