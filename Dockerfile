# One file, three images; what pip installs stands with versions and hashes in deploy/lock, a file a layer (`make lock`).
#   node    Flower and the contract's libraries, no torch and of CrossProbe deploy/ alone: SuperLink, SuperNode, SuperExec
#   worker  torch and CrossProbe, for the hospital: opens images, has no network at run time
#   server  torch and CrossProbe, for the coordinator: runs the ServerApp and the commands
# What is in an image: docker run --rm IMAGE python /app/deploy/image.py

# Any image with Python 3.11 or newer as `python`, and pip; for example the same one out of a registry of your own.
ARG BASE=python:3.11.13-slim-bookworm@sha256:86adf8dbadc3d6e82ee5dd2c74bec2e1c2467cdad47886280501df722372d2e1
FROM ${BASE} AS node
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN useradd --create-home --uid 1000 crossprobe
WORKDIR /app
COPY deploy/image.py deploy/supernode.py deploy/
COPY deploy/lock/node.lock deploy/lock/
# Wheels alone: to build one would fetch and run what no lock names.
RUN python -m pip install --require-hashes --no-deps --only-binary :all: -r deploy/lock/node.lock \
      && python deploy/image.py --slim
USER crossprobe

FROM node AS torch
USER root
# Empty: torch for GPUs, from pip's default index. Else an index with the build in torch-index.lock: for processors alone,
# unless `make lock TORCH_INDEX=...` wrote another one's hashes there. They decide, whichever index a file is from.
ARG TORCH_INDEX=""
COPY deploy/lock/torch*.lock deploy/lock/
RUN python -m pip install --require-hashes --no-deps --only-binary :all: -r deploy/lock/torch${TORCH_INDEX:+-index}.lock \
      ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} && python deploy/image.py --slim

# What the code needs before the code itself: a new version of ours then is a layer of kilobytes.
FROM torch AS worker
COPY deploy/lock/worker.lock deploy/lock/
RUN python -m pip install --require-hashes --no-deps --only-binary :all: -r deploy/lock/worker.lock \
      && python deploy/image.py --slim
COPY . .
RUN python -m pip install --no-deps --no-build-isolation -e .
USER crossprobe

FROM torch AS server
COPY deploy/lock/server.lock deploy/lock/
RUN python -m pip install --require-hashes --no-deps --only-binary :all: -r deploy/lock/server.lock \
      && python deploy/image.py --slim
COPY . .
RUN python -m pip install --no-deps --no-build-isolation -e .
USER crossprobe

FROM torch AS demo
COPY deploy/lock/demo.lock deploy/lock/
RUN python -m pip install --require-hashes --no-deps --only-binary :all: -r deploy/lock/demo.lock \
      && python deploy/image.py --slim && install -d -o crossprobe /runs
COPY . .
RUN python -m pip install --no-deps --no-build-isolation -e .
USER crossprobe
