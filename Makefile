# Environments: .venv has everything that demo, test, check and bench need; requirements/ locks the versions in it and in
# the others. The others see .venv's packages after their own: torch lies on the disk once, and each adds what differs.
PYTHON ?= python3
# The pair that the locks name. Another one: make setup TORCH="torch==2.11.0 torchvision==0.26.0", or export TORCH.
LOCKED_TORCH := torch==2.14.1 torchvision==0.29.1
TORCH ?= $(LOCKED_TORCH)
ifeq ($(findstring torchvision,$(TORCH)),)
$(error TORCH names torch and the torchvision that fits it, like "$(LOCKED_TORCH)")
endif

VENV := .venv
OLDEST := .venv-oldest
NEWEST := .venv-newest
LMMS := .venv-lmms
DOCS := .venv-docs
DEMO := .venv-demo
STAMP := $(VENV)/.installed
OLDEST_STAMP := $(OLDEST)/.installed
LMMS_STAMP := $(LMMS)/.installed
DOCS_STAMP := $(DOCS)/.installed
DEMO_STAMP := $(DEMO)/.installed
TRAIN := .venv-train
TRAIN_STAMP := $(TRAIN)/.installed
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed

# What depends on the version of transformers: the engine, the families, and the commands on top of them.
ENGINE_TESTS := tests/matrix/test_matrix.py $(addprefix tests/test_,dart_command.py llava_golden.py llava_model.py \
	llava_next.py llava_next_golden.py methods*.py more_families.py pruner*.py properties.py qwen*.py seam.py selection.py \
	serve.py static_cache.py training.py uses.py)

# Two processes, each of which computes on one thread.
WORKERS ?= -n 2 --dist loadfile

.PHONY: setup setup-lmms setup-vllm setup-demo setup-train lock clean-env demo test fuzz test-lmms test-serve test-vllm \
	test-demo test-train test-oldest test-newest check docs bench bench-gpu

setup: $(STAMP)

setup-lmms: $(LMMS_STAMP)

setup-vllm: $(VLLM_STAMP)

setup-demo: $(DEMO_STAMP)

setup-train: $(TRAIN_STAMP)

# $(call install,FOLDER,LOCK): the lock and this project, which is built with the locked setuptools. With another torch the
# lock goes without torch and without what torch brings. An environment without its stamp is half made: it is made anew.
# As a constraint, too, so that packages that are built from source are built with the locked setuptools.
UNLOCKED := $(if $(filter-out $(LOCKED_TORCH),$(TORCH)),/^(torch|torchvision|triton|setuptools|nvidia-.*|cuda-.*)==/d)
define install
	rm -f $(1)/.installed
	sed -E '$(UNLOCKED)' requirements/$(2).txt > $(1)/lock.txt
	PIP_CONSTRAINT=$(1)/lock.txt $(1)/bin/python -m pip install --quiet $(TORCH) -r $(1)/lock.txt
	$(1)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
endef

# $(call layer,FOLDER): an environment that sees .venv's packages too.
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
define layer
	test -e $(1)/.installed || $(VENV)/bin/python -m venv --clear $(1)
	$(VENV)/bin/python $(PURELIB) > "$$($(1)/bin/python $(PURELIB))/venv.pth"
endef

# Another TORCH than the one that is installed is installed, where the caller names one.
ifneq ($(origin TORCH),file)
ifneq ($(TORCH),$(shell cat $(STAMP) 2>/dev/null))
.PHONY: $(STAMP)
endif
endif

$(STAMP): requirements/test.txt pyproject.toml
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	$(call install,$(VENV),test)
	echo "$(TORCH)" > $@

$(OLDEST_STAMP): requirements/oldest.txt $(STAMP)
	$(call layer,$(OLDEST))
	$(call install,$(OLDEST),oldest)
	touch $@

# lmms-eval brings a hundred packages: they stay out of .venv.
$(LMMS_STAMP): requirements/lmms-eval.txt $(STAMP)
	$(call layer,$(LMMS))
	$(call install,$(LMMS),lmms-eval)
	touch $@

# Gradio asks for an older Pillow than the one whose pixels the tests have recorded.
$(DEMO_STAMP): requirements/demo.txt $(STAMP)
	$(call layer,$(DEMO))
	$(call install,$(DEMO),demo)
	touch $@

# DeepSpeed and TRL. DeepSpeed builds nothing before a test needs it.
$(TRAIN_STAMP): export DS_BUILD_OPS := 0
$(TRAIN_STAMP): requirements/train.txt $(STAMP)
	$(call layer,$(TRAIN))
	$(call install,$(TRAIN),train)
	touch $@

# Needs neither torch nor this project.
$(DOCS_STAMP): requirements/docs.txt
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -r requirements/docs.txt
	touch $@

# vLLM for CPUs, with the one torch that it asks for: nothing of .venv is seen. The .pth file lets torchvision be imported.
$(VLLM_STAMP): requirements/vllm.txt pyproject.toml
	test -e $@ || $(PYTHON) -m venv --clear $(VLLM)
	PIP_CONSTRAINT=requirements/vllm.txt $(VLLM)/bin/python -m pip install --quiet --no-deps -r requirements/vllm.txt
	$(VLLM)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	printf '%s\n' "$(CURDIR)/vllm/cpu" 'import torchvision_operators' > "$$($(VLLM)/bin/python $(PURELIB))/torchvision_operators.pth"
	touch $@

# All lock files, with the newest versions that pyproject.toml admits.
lock:
	$(PYTHON) requirements/lock.py $(TORCH)

clean-env:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(LMMS) $(DOCS) $(DEMO) $(TRAIN) $(VLLM)

demo: setup
	$(VENV)/bin/python scripts/demo.py

test: setup
	$(VENV)/bin/python -m pytest $(WORKERS)

# 2,000 random files, configs, images, training rows and requests each, where `make test` tries about 100.
fuzz: setup
	DART_FUZZ=2000 $(VENV)/bin/python -m pytest tests/test_fuzz.py

test-lmms: setup-lmms
	$(LMMS)/bin/python -m pytest tests/test_lmms_*.py

# Part of `make test`; with LOAD_REQUESTS=500 as long as that takes.
test-serve: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/test_serve*.py

# A process for each file: an engine leaves its process with settings of its own, which a server would inherit.
test-vllm: $(VLLM_STAMP)
	set -e; for file in tests/test_vllm_*.py; do OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest $$file; done

test-demo: setup-demo
	OMP_NUM_THREADS=1 $(DEMO)/bin/python -m pytest -k gradio tests/test_gradio.py tests/test_bad_inputs.py

# On a CPU DeepSpeed compiles its communication once, which takes a minute or two: with ninja, and kept beside it.
test-train: setup-train
	PATH="$(CURDIR)/$(TRAIN)/bin:$$PATH" TORCH_EXTENSIONS_DIR="$(CURDIR)/$(TRAIN)/built" OMP_NUM_THREADS=1 \
		$(TRAIN)/bin/python -m pytest tests/test_train_*.py

test-oldest: $(OLDEST_STAMP)
	$(OLDEST)/bin/python -m pytest $(WORKERS) $(ENGINE_TESTS)

# The newest transformers that the index has today, over the lock. It tells and does not fail: nobody here chose that release.
RULE := ========================================================================
test-newest: setup
	$(call layer,$(NEWEST))
	$(call install,$(NEWEST),test)
	@verdict='FAILED, mend this next'; \
	$(NEWEST)/bin/python -m pip install --quiet --upgrade transformers \
		&& $(NEWEST)/bin/python -m pytest $(WORKERS) $(ENGINE_TESTS) && verdict=PASSED; \
	release=$$($(NEWEST)/bin/python -c 'from importlib.metadata import version; print(version("transformers"))'); \
	printf '%s\n' '' '$(RULE)' "test-newest: transformers $$release: $$verdict" '$(RULE)'

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy dart

# The pages as a site, outputs/site/readme.html first; any warning ends it.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build

# Needs a CUDA GPU.
bench-gpu:
	bash scripts/bench_gpu.sh

bench: setup
	$(VENV)/bin/python -m benchmarks.selection
	$(VENV)/bin/python -m benchmarks.latency
