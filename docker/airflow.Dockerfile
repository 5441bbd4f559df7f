# Airflow's image: api-server, scheduler, DAG processor, triggerer, and the workers of the KubernetesExecutor.
# It holds the DAGs, the plugins and the providers; no torch, and no model.
#
#   docker build -f docker/airflow.Dockerfile --build-arg REVISION=$(git rev-parse HEAD) -t NAME:TAG .
ARG BASE=apache/airflow:3.3.2-python3.11

FROM ${BASE}
USER 0
WORKDIR /opt/millrace
# Airflow's own home is written at its start; where the root file system is read-only, a volume or tmpfs goes there.
ENV PYTHONUNBUFFERED=1 \
    PYTHONPATH=/opt/millrace \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/millrace/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/millrace/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=false

# GitDagBundle runs git; the public base has it. The newest of this Debian: a pin would break at its next security update.
# hadolint ignore=DL3008
RUN command -v git >/dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*; }

# Dependencies come before the code: a change of the code leaves this layer as it is.
COPY requirements/airflow.txt requirements/local.txt requirements/
USER 50000:0
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements/airflow.txt

# The code is owned by root, so that no task can change it.
USER 0
COPY examples examples
COPY expectations expectations
COPY corpora.yaml ./
COPY tasks tasks
COPY docker/entry entry
COPY plugins plugins
COPY dags dags
RUN python -m compileall -q dags entry plugins tasks && chmod -R a+rX .
ARG REVISION=unknown
ENV MILLRACE_CODE_REVISION=${REVISION}
LABEL org.opencontainers.image.title="millrace airflow" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
USER 50000:0
