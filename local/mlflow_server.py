"""`python -m local.mlflow_server PORT`: the MLflow server in one process.

`mlflow server` keeps a second Python (180 MB) that only waits for the first. This sets what that command
sets, by MLflow's own names, prepares the stores as it does, and runs the same application with uvicorn here.
Reads MLFLOW_BACKEND_STORE_URI and MLFLOW_ARTIFACTS_DESTINATION from the environment; artifacts are served
by the server, so that its clients need no credentials of the S3 behind it.
"""

import os
import sys


def main(port: int) -> None:
    """Run the server until SIGTERM."""
    from mlflow.server import constants

    backend = os.environ["MLFLOW_BACKEND_STORE_URI"]
    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = backend
    os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = backend
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = os.environ["MLFLOW_ARTIFACTS_DESTINATION"]
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"

    import uvicorn
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(backend, backend, "mlflow-artifacts:/")
    uvicorn.run("mlflow.server.fastapi_app:app", host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]))
