"""`python with_password.py COMMAND ...`: writes the password of Airflow's user `admin`, then becomes COMMAND.

Reads AIRFLOW_ADMIN_PASSWORD, which COMMAND does not see any more. Writes the file that Airflow's SimpleAuthManager
reads (AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE), readable by this user alone.
"""

import json
import os
import sys


def main(command: list[str]) -> None:
    """Write the file; replace this process."""
    password = os.environ.pop("AIRFLOW_ADMIN_PASSWORD", "")
    if not password:
        sys.exit("expected AIRFLOW_ADMIN_PASSWORD, found none. Next: set it in .env (docker/compose/make_env.sh).")
    path = os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"admin": password}, file)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
