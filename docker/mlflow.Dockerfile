# The MLflow server: runs, the model registry, and artifacts that it hands on from S3.
#
#   docker build -f docker/mlflow.Dockerfile --build-arg REVISION=$(git rev-parse HEAD) -t NAME:TAG .
#
# Its environment: MLFLOW_BACKEND_STORE_URI (postgresql+psycopg2://...), MLFLOW_ARTIFACTS_DESTINATION (s3://bucket/folder),
# MLFLOW_S3_ENDPOINT_URL where it is not AWS, AWS_* credentials or a role, and MLFLOW_SERVER_ALLOWED_HOSTS: the names it is
# called by (with the port), for everything else is refused. A database of an older MLflow is upgraded by
# `mlflow db upgrade`, never by the server: see docs/runbooks/upgrade.md.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE}
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin millrace
WORKDIR /opt/millrace
COPY requirements/mlflow.txt requirements/local.txt requirements/
# Compiled here, because the root file system may be read-only where it runs.
RUN pip install --no-compile -r requirements/mlflow.txt \
    && (python -m compileall -qq -j 0 "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true)
ENV MLFLOW_SERVE_ARTIFACTS=true \
    MLFLOW_DEFAULT_ARTIFACT_ROOT=mlflow-artifacts:/ \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    GIT_PYTHON_REFRESH=quiet
ARG REVISION=unknown
LABEL org.opencontainers.image.title="millrace mlflow" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/health', timeout=4)"]
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "2"]
