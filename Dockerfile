# The image of the service. Dockerfile.neuro-engine-service is a link to this file: one image, two names.
#
# Two stages. The first has a compiler and builds the native core into a virtual environment, from wheels and hashes of
# requirements.lock; the second takes that directory and the production configuration, and nothing else. Both begin with
# the same base, because a virtual environment is a set of links to the interpreter that made it.
#
# The base is any image of Debian's kind (glibc, apt-get) with Python 3.11 or newer and its venv module:
# BASE_IMAGE=python:3.12-slim in general, one made of Debian's own packages where no registry is reachable
# (deploy/image/build). Alpine is not: musl has no robust mutex with a monotonic clock.
#
# Processes: the arbiter as process 1, controller and workers below it, all under one numeric user that owns no file. They
# write to /tmp (metrics: two files of 128 kB for each worker row, created at full size; a worker has up to four rows over
# reloads) and to /dev/shm (heartbeats), both in memory, so the root file system may be read-only. The block is a memfd,
# which counts towards the container's memory: some 150 MB with two workers, plus the clients' buffers (docs/capacity.md).
#
# Configuration: CONFIG_PATH, else /etc/mlsdm/config.yaml, else the file below. HOST and PORT are set here, because they
# belong to the container, whatever a file says.

ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
# Python's headers are part of the interpreter's image; with Debian's own Python they are a package.
RUN headers=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))') \
    && apt-get update -q \
    && apt-get install -q -y --no-install-recommends gcc libc6-dev $(test -e "$headers/Python.h" || echo python3-dev) \
    && rm -rf /var/lib/apt/lists/*
# For networks with an index of their own, or with certificates of their own (a path in this stage): pip's variables.
ARG PIP_INDEX_URL
ARG PIP_CERT
RUN python3 -m venv /opt/mlsdm
WORKDIR /src
COPY requirements.lock ./
RUN /opt/mlsdm/bin/python -m pip install -q --no-cache-dir --disable-pip-version-check \
    --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY shm shm
COPY core core
COPY app app
COPY modules modules
COPY mlsdm mlsdm
# Build tools are not needed after the build.
RUN /opt/mlsdm/bin/python -m pip install -q --no-cache-dir --disable-pip-version-check \
    --no-deps --no-build-isolation --no-index . \
    && /opt/mlsdm/bin/python -m pip uninstall -q -y setuptools pip

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mlsdm" \
      org.opencontainers.image.description="A governed memory server for AI applications" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.source="https://github.com/neuron7x/mlsdm" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/mlsdm /opt/mlsdm
COPY config/production-ready.yaml /usr/share/mlsdm/production-ready.yaml
ENV PATH=/opt/mlsdm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MLSDM_ENV=production \
    HOST=0.0.0.0 \
    PORT=8000
# A relative security.keys_path is resolved from here.
WORKDIR /etc/mlsdm
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Liveness, not readiness: a restart for a busy minute would lose every memory.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python3", "-ISc", "from http.client import HTTPConnection as C; from os import environ as e; c = C('127.0.0.1', int(e['PORT']), timeout=2); c.request('GET', '/health/liveness'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["mlsdm", "serve"]
