# The image that the bytewax Helm chart (waxctl) and our own StatefulSet run: no disk, no root, no network at start.

FROM python:3.11-slim-bookworm AS builder
# An index or folder with CPU-only wheels of torch keeps gigabytes of GPU libraries out of the image.
ARG PIP_EXTRA_INDEX_URL=""
ARG PIP_FIND_LINKS=""
WORKDIR /source
RUN python -m venv /venv
# Dependencies first: this layer is built again only when they change. The lock also has the development tools, so it
# constrains what is installed, and pyproject.toml says what that is.
COPY requirements.lock pyproject.toml ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > runtime.txt \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -r runtime.txt -c requirements.lock
COPY README.md ./
COPY core ./core
COPY flows ./flows
COPY models ./models
COPY operators ./operators
COPY pkm ./pkm
COPY producers ./producers
COPY sinks ./sinks
COPY sources ./sources
RUN /venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps .

FROM python:3.11-slim-bookworm
# As process 1, dash neither passes SIGTERM on nor gives way to what it starts; bash does, also under the name of sh,
# by which the chart calls it.
RUN groupadd --gid 65532 pkm \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /dev/shm --shell /usr/sbin/nologin pkm \
    && ln -s /bin/bash /usr/local/bin/sh
COPY --from=builder /venv /venv
WORKDIR /app
COPY docker/entrypoint.sh docker/entrypoint-recovery.sh k8s/knowledge_flow.py ./
# The root file system is read-only where this runs: what wants a home or a temporary file gets memory.
ENV PATH=/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/dev/shm \
    TMPDIR=/dev/shm \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    TOKENIZERS_PARALLELISM=false \
    OMP_NUM_THREADS=2 \
    MKL_NUM_THREADS=2 \
    OPENBLAS_NUM_THREADS=2 \
    PKM_LOG_FORMAT=json
USER 65532:65532
EXPOSE 9999 3030 8080
ENTRYPOINT ["bash", "./entrypoint.sh"]
