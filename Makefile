# make report   what training moved, then the main analysis, which links it; into reports/out
# make test     style, layers and the test-suite but for its long tests
# make soak     the long tests, and what the suite repeats a little, repeated a lot, into reports/faults.json (hours)
# make docs     the documentation site, notebooks and gallery run, into docs/_site/html
# make answers  the gallery's pages to look at, into reports/pages/answers
# make lab      JupyterLab on the notebooks
# make tiny     rebuild the embedded model from nothing (an hour and a half)
# make tiny3    rebuild its sibling of the family Qwen3-VL from nothing (four hours on one core)
# make experiment  the runs of docs/EXPERIMENT.md that are not done yet (four hours; stop it when you like)
# make arms     rebuild tiny-cold and its three adapters (twenty minutes)
# make controls the verdict's trained controls, out of tiny (an hour)
# make lock     resolve the versions again

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.setup-done

WORKERS ?= 2

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Every process would compile what it imports anew: ten seconds each.
unexport PYTHONDONTWRITEBYTECODE

FAULTS := $(addprefix tests/,interp/store/test_faults.py analyses/test_faults.py analyses/test_hub_folder.py analyses/test_extract.py \
  interp/store/test_opening.py interp/test_hygiene.py interp/test_properties.py interp/test_loading.py \
  interp/capture/test_replay.py interp/validate/test_real_shape.py train/test_judge.py \
  interp/model/test_families.py interp/test_attribution.py interp/pages/test_browser.py analyses/benchmarks/test_gpu.py)

# The suite checks shapes and types where arrays are computed; this everywhere, which takes a seventh longer.
ALL_SHAPES := --jaxtyping-packages=interp,tests.support.checking.checked

.PHONY: setup report test soak lint docs answers lab tiny tiny3 arms controls experiment lock

setup: $(DONE)

$(DONE): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --system-certs --require-hashes requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --system-certs --no-deps --no-build-isolation --editable .
	touch $(DONE)

# Both are measured at once, a thread each, and go on from runs of one thread alone; the main page is drawn when
# the other, which it links, is there.
report: setup
	$(BIN)/python analyses/before_after.py --resume --threads 1 & other=$$!; trap "kill $$other" INT TERM; \
	  $(BIN)/python analyses/extract.py direct_vs_indirect --resume --threads 1 --out reports/out; \
	  main=$$?; wait $$other && test $$main -eq 0
	$(BIN)/python analyses/direct_vs_indirect.py --resume --threads 1

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

test: lint
	TEST_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  -m "not long" --durations 25 --durations-min 5

soak: setup docs
	TEST_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m long $(ALL_SHAPES)
	SOAK=1 HYPOTHESIS_PROFILE=soak FAULTS_JSON=reports/faults.json TEST_THREADS=1 OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ALL_SHAPES) $(FAULTS)
	$(BIN)/python analyses/faults.py

docs: setup
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_site/html

answers: setup
	$(BIN)/python -m docs.answers

lab: setup
	$(BIN)/jupyter lab notebooks

arms: setup
	OMP_NUM_THREADS=2 $(BIN)/python -m train.sft --config train/configs/tiny-cold.yaml
	OMP_NUM_THREADS=2 $(BIN)/python -m train.grpo --config train/configs/tiny-direct.yaml
	OMP_NUM_THREADS=2 $(BIN)/python -m train.grpo --config train/configs/tiny-direct.yaml --map effect --output_dir runs/tiny-effect
	OMP_NUM_THREADS=2 $(BIN)/python -m train.grpo --config train/configs/tiny-direct.yaml --saliency_weight 0 --output_dir runs/tiny-control

experiment: setup
	$(BIN)/python -m train.experiment

controls: setup
	OMP_NUM_THREADS=2 $(BIN)/python -m train.sft --config train/configs/tiny-blind-rows.yaml
	OMP_NUM_THREADS=2 $(BIN)/python -m train.sft --config train/configs/tiny-no-ffn-rows.yaml

tiny: setup
	$(BIN)/python -m train.tiny.new_model runs/new
	OMP_NUM_THREADS=2 $(BIN)/python -m train.tiny.vision runs/new --out runs/seeing
	OMP_NUM_THREADS=2 $(BIN)/python -m train.sft --config train/configs/tiny-sft.yaml
	OMP_NUM_THREADS=2 $(BIN)/python -m train.sft --config train/configs/tiny-sft-2.yaml
	$(BIN)/python -m train.evaluate runs/tiny-sft-2/final

tiny3: setup
	$(BIN)/python -m train.tiny.new_model runs/new3 --family qwen3_vl
	OMP_NUM_THREADS=1 $(BIN)/python -m train.tiny.vision runs/new3 --out runs/seeing3
	OMP_NUM_THREADS=1 $(BIN)/python -m train.sft --config train/configs/tiny-sft.yaml \
	  --model_name_or_path runs/seeing3 --output_dir runs/tiny3-sft
	OMP_NUM_THREADS=1 $(BIN)/python -m train.sft --config train/configs/tiny-sft-2.yaml \
	  --model_name_or_path runs/tiny3-sft/final --output_dir runs/tiny3-sft-2
	OMP_NUM_THREADS=1 $(BIN)/python -m train.sft --config train/configs/tiny-sft-2.yaml --scene_seed 3 \
	  --model_name_or_path runs/tiny3-sft-2/final --output_dir runs/tiny3-sft-3
	OMP_NUM_THREADS=1 $(BIN)/python -m train.tiny.vision runs/tiny3-sft-3/final --out runs/seeing3-2 \
	  --steps 4000 --lr 5e-4 --seed 3
	OMP_NUM_THREADS=1 $(BIN)/python -m train.sft --config train/configs/tiny-sft-2.yaml --scene_seed 5 \
	  --model_name_or_path runs/seeing3-2 --output_dir runs/tiny3-sft-4
	OMP_NUM_THREADS=1 $(BIN)/python -m train.sft --config train/configs/tiny-sft-2.yaml --scene_seed 6 --n_samples 50000 \
	  --model_name_or_path runs/tiny3-sft-4/final --output_dir runs/tiny3-sft-5
	$(BIN)/python -m train.evaluate runs/tiny3-sft-5/final

lock: setup
	$(BIN)/uv pip compile --system-certs pyproject.toml --all-extras --group build --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --python-version 3.11 \
	  --python-platform x86_64-unknown-linux-gnu --output-file requirements.lock
