# make repro   install if needed, run the default study, say where its page is
# make test    install if needed, run the tests
# make nightly the same, and the tests that are marked `nightly`
# Everything lives in .venv; remove it to start again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro study test nightly lint install lock clean

repro: install
	@workflow/run study use default
	workflow/run check
	workflow/run prune
	dvc repro
	workflow/run page --all
	@echo "The page: $(CURDIR)/results/index.html"

# make study STUDY=fashion-mnist: the same for a study of studies/, which is shown to DVC first (.dvcignore)
study: install
	@workflow/run study use "$(STUDY)"
	cd studies/$(STUDY) && ../../workflow/run check && ../../workflow/run prune
	dvc repro studies/$(STUDY)/dvc.yaml
	workflow/run page --all
	@echo "The page: $(CURDIR)/studies/$(STUDY)/results/index.html"

test: install
	pytest -n 2 --dist worksteal

nightly: install
	pytest -n 2 --dist worksteal -m "nightly or not nightly"

lint: install
	ruff check .
	ruff format --check .
	mypy

install: $(BIN)/.installed

# The last step but one: DVC rewrites a small lock file 750 times to find that there is nothing to do. In
# memory that takes 0.1 s, on ext4 1.2 s of the 3 s that `dvc repro` then lasts. Its real lock stays on disk.
#
# torch first and alone, at the version of the lock: with the whole list at once pip may take another
# build than the one that the machine offers locally. The lock is a list of constraints, so that one
# file fits machines with a GPU (which need torch's CUDA packages) and without.
$(BIN)/.installed: pyproject.toml requirements.lock
	@git rev-parse --git-dir >/dev/null 2>&1 || \
		{ echo "not a Git repository, and DVC needs one; make it one: git init && git add --all"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV), which takes minutes: PyTorch first, then some 190 packages. About 0.5 GB to download and"
	@echo "2 GB on disk with PyTorch's build for CPUs; its build for CUDA, taken where nothing else is offered, is some 2.5 GB more"
	$(BIN)/python -m pip install --quiet --constraint requirements.lock torch
	@echo "PyTorch takes $$(du -sh $(VENV) | cut -f1); the other packages come now"
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[pipeline,export,dev]'
	-@test -w /dev/shm && mkdir -p .dvc/tmp && ln -sfn /dev/shm/dvc-rwlock-$$(id -u)-$$(pwd | cksum | cut -d' ' -f1) \
		.dvc/tmp/rwlock
	@echo "Installed: $$(du -sh $(VENV) | cut -f1) in $(VENV)"
	touch $@

# after editing pyproject.toml: pin everything again
lock: install
	$(BIN)/uv pip compile --quiet --python-version 3.11 --all-extras --no-annotate --no-header \
		--output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .work .snakemake
