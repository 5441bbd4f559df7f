# The image of the stages: what `python -m tasks STAGE` needs, no Airflow, no language model.
#
#   docker build -f docker/stage.Dockerfile --target cpu  --build-arg REVISION=$(git rev-parse HEAD) -t NAME:TAG .
#   docker build -f docker/stage.Dockerfile --target cuda --build-arg REVISION=$(git rev-parse HEAD) -t NAME:TAG .
#
# `cpu` needs PyTorch's CPU build: from an index that has it
# (--build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu), or as a wheel in docker/wheels/, where
# `pip download --no-deps --dest docker/wheels torch==2.13.0` puts what this machine's pip is set up to find.
# `cuda` takes the build and the CUDA libraries of the default index, and nothing from docker/wheels/.
# `test` is `cpu` with the small language model that the tests train.
ARG BASE=python:3.11-slim-bookworm

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
COPY requirements/local-no-deps.txt requirements/
RUN pip install --no-deps -r requirements/local-no-deps.txt

FROM base AS cuda-packages
ARG PIP_EXTRA_INDEX_URL
COPY requirements/stage.txt requirements/local.txt requirements/cuda-no-deps.txt requirements/
# Triton compiles kernels while it runs, and asks for a C compiler.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-compile -r requirements/stage.txt \
    && pip install --no-compile --no-deps -r requirements/cuda-no-deps.txt \
    && (python -m compileall -qq -j 0 "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true) \
    && python -c 'import torch; assert torch.version.cuda, "expected the CUDA build of torch, found " + torch.__version__'

# The code, in one layer that all targets share; owned by root, so that a stage cannot change it.
FROM base AS code
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
