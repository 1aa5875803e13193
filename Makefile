# demo · test · lint · bench: the commands of README and CI. Nothing is installed outside of .venv.

PYTHON ?= python3
BIN := .venv/bin
PACKAGES := utils prompts dataset model_training evaluation main.py visualize_training.py

PREFERENCE := $(BIN)/python main.py --task preference --config configs/demo_preference.yaml
REWARD_MODELS := base mean_and_variance categorical
GUARDRAIL := $(BIN)/python main.py --task guardrail --config configs/demo_guardrail.yaml
GUARDS := politics expert_opinion meeting

.PHONY: help demo demo-preference $(REWARD_MODELS:%=train-%) demo-guardrail $(GUARDS:%=guard-%) guard-joint test test-gpu lint bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    prepare data, train, evaluate and draw on the embedded model: outputs/demo"
	@echo "make demo-preference  pairs with hidden context, three reward models, evaluation: outputs/demo_preference"
	@echo "make demo-guardrail   three guardrails, an adapter each, routed, merged and joint: outputs/demo_guardrail"
	@echo "make test    the whole test suite"
	@echo "make test-gpu  what needs CUDA, with requirements-gpu.txt installed in .venv; skipped with its reason elsewhere"
	@echo "make lint    ruff (rules and format) and mypy"
	@echo "make bench   the quick benchmarks, one table each"
	@echo "make clean   remove .venv and caches"

demo: .venv/core.stamp
	$(BIN)/python main.py --mode pipeline --config configs/demo.yaml
	@echo "--- three answers to questions that training never met"
	$(BIN)/python main.py --mode generate --config configs/demo.yaml
	@echo "--- evaluation on held-out queries"
	$(BIN)/python visualize_training.py --metrics_dir outputs/demo --mode report

demo-preference: .venv/core.stamp
	$(PREFERENCE) --mode prepare_data
	@$(MAKE) --no-print-directory -j 2 $(REWARD_MODELS:%=train-%)
	$(PREFERENCE) --mode evaluate
	$(PREFERENCE) --mode visualize
	@echo "--- two answers to one question, as mean_and_variance sees them"
	$(PREFERENCE) --mode generate

$(REWARD_MODELS:%=train-%): train-%:
	$(PREFERENCE) --mode train --reward_model_type $* --output_dir outputs/demo_preference/$*

demo-guardrail: .venv/core.stamp
	$(GUARDRAIL) --mode prepare_data
	@$(MAKE) --no-print-directory -j 2 guard-joint $(GUARDS:%=guard-%)
	$(GUARDRAIL) --mode evaluate
	$(GUARDRAIL) --mode visualize
	@echo "--- three guards on one base: who answers, and how surely"
	$(GUARDRAIL) --mode generate

$(GUARDS:%=guard-%): guard-%:
	$(GUARDRAIL) --mode train --behavior $*

guard-joint:
	$(GUARDRAIL) --mode train --joint

test: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

test-gpu: .venv/dev.stamp
	$(BIN)/python -m pytest -rs tests/gpu tests/model_training/test_gpu_packages.py $(PYTEST_ARGS)

lint: .venv/dev.stamp
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy $(PACKAGES)

bench: .venv/core.stamp
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.rewards

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/core.stamp: requirements.txt | .venv/bin/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/dev.stamp: requirements-dev.txt requirements.txt | .venv/bin/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ .venv/core.stamp

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
