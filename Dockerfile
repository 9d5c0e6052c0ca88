# One file, three images; exact versions of everything that pip installs stand in constraints.txt.
#   node    Flower and the contract's libraries, no torch and no CrossProbe: SuperLink, SuperNode, SuperExec
#   worker  torch and CrossProbe, for the hospital: opens images, has no network at run time
#   server  torch and CrossProbe, for the coordinator: runs the ServerApp and the commands
# What is in an image: docker run --rm IMAGE python /app/deploy/image.py

# Any image with Python 3.11 or newer as `python`, and pip; for example the same one out of a registry of your own.
ARG BASE=python:3.11.13-slim-bookworm
FROM ${BASE} AS node
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN useradd --create-home --uid 1000 crossprobe
WORKDIR /app
COPY constraints.txt pyproject.toml ./
COPY deploy/image.py deploy/
RUN python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))" \
      > /tmp/thin.txt && python -m pip install -c constraints.txt -r /tmp/thin.txt && python deploy/image.py --slim
USER crossprobe

FROM node AS torch
USER root
# Index that pip takes torch from (CPU or CUDA build); empty: pip's default.
ARG TORCH_INDEX=""
RUN python -m pip install -c constraints.txt torch ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} \
      && python deploy/image.py --slim
COPY README.md LICENSE crossprobe.py Dockerfile docker-compose.yml ./
COPY deploy deploy
COPY common common
COPY clients clients
COPY server server
COPY simulations simulations
COPY configs configs

FROM torch AS worker
RUN python -m pip install -c constraints.txt -e '.[worker]' && python deploy/image.py --slim
USER crossprobe

FROM torch AS server
RUN python -m pip install -c constraints.txt -e '.[server]' && python deploy/image.py --slim
USER crossprobe

FROM torch AS demo
RUN python -m pip install -c constraints.txt -e '.[simulation]' && python deploy/image.py --slim \
      && install -d -o crossprobe /runs
USER crossprobe
