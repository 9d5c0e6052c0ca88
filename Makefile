# `make demo` and `make test` need git, make and Python 3.11 or newer; nothing else.
PYTHON ?= python3
VENV ?= .venv
# Index that pip takes torch from, e.g. PyTorch's own for a CPU or a CUDA build (see README). Empty: pip's default.
TORCH_INDEX ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: install demo docs picture test federation-test fault-test network-test container-test soak benchmark lint lock sbom clean

install: $(STAMP)

$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "CrossProbe needs Python 3.11 or newer, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	rm -f $(VENV)/.installed-*
	touch $@

# What each layer of the images brings beyond those below it, with the hashes of all archives that it may be taken from.
# torch.lock is of pip's default index; given TORCH_INDEX, that index's build is written anew to torch-index.lock.
COMPILE := $(BIN)/uv pip compile --quiet -c constraints.txt --generate-hashes --python-platform linux --python-version 3.11 --no-header --no-annotate
beyond = $$(sed -nE 's/^([^ =]+)==.*/--no-emit-package \1/p' $(1:%=deploy/lock/%.lock) | sort -u)

lock: install
	$(COMPILE) pyproject.toml -o deploy/lock/node.lock
	echo torch | $(COMPILE) - $(call beyond,node) -o deploy/lock/torch.lock
	$(if $(TORCH_INDEX),echo torch | $(COMPILE) - $(call beyond,node) -o deploy/lock/torch-index.lock --index $(TORCH_INDEX) --index-strategy unsafe-best-match)
	$(COMPILE) pyproject.toml --extra worker $(call beyond,node torch) -o deploy/lock/worker.lock
	$(COMPILE) pyproject.toml --extra server $(call beyond,node torch) -o deploy/lock/server.lock
	$(COMPILE) pyproject.toml --extra simulation $(call beyond,node torch) -o deploy/lock/demo.lock

# What is installed here, as CycloneDX; of an image: docker run --rm IMAGE python /app/deploy/image.py --sbom
sbom: install
	mkdir -p build
	$(BIN)/python deploy/image.py --sbom > build/sbom.json

demo: install
	$(BIN)/crossprobe demo

# The pages of docs/ as a site that loads nothing from a network; a dead link fails.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "look at it with: $(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8000"

# The README's picture, out of the phantom demo, which is run first where it has not been.
picture: install
	test -e runs/demo/release/SHA256SUMS || $(BIN)/crossprobe demo $(if $(wildcard runs/demo),--resume)
	OMP_NUM_THREADS=1 $(BIN)/python -m simulations.picture runs/demo docs/picture.webp

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# A whole federation on loopback: what its ports refuse.
federation-test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m federation

# A whole federation on loopback with processes killed and stopped, disks full, replies poisoned: about ten minutes.
fault-test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults

# Hospitals in network namespaces, at the end of wires that delay, lose and cut: a quarter of an hour, most of it waiting.
# Needs root and Debian's iproute2, nginx-light and gcc; what cannot run is named at the end.
network-test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m network -rs tests/network

# 200 rounds with kills and cuts from a seed, about an hour; SOAK='--rounds 40 --seed 7' for others.
soak: install
	PYTHONPATH=.:tests/support OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py $(SOAK)

# The figures of docs/performance.md beside each other's, half an hour on a machine that does nothing else; NVFLARE=PYTHON
# measures beside it too, with an interpreter of an environment of its own that has nvflare. The longest come last.
benchmark: install
	set -e; for each in aggregation polling "beside $(NVFLARE:%=--nvflare %)" deployed_round many_sites time_to_result; do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m simulations.benchmarks.$$each; \
	done

# The kits in running containers, attacked from inside: needs a container engine, or root and Debian's docker.io,
# docker-compose and debootstrap to start one. A quarter of an hour, most of it the building of images.
container-test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m containers -s tests/containers

clean:
	rm -rf $(VENV) runs build *.egg-info
