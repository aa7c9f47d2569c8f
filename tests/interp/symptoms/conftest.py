"""Model, samples and a stored run that the tests of reported symptoms share."""

import copy
from dataclasses import replace

import pytest

import interp


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", split="test", limit=8)


@pytest.fixture(scope="module")
def sample(samples):
    return samples[6]


@pytest.fixture(scope="module")
def maps(tiny, sample):
    return interp.extract.maps(tiny, sample, kinds=("direct", "bottleneck"))


@pytest.fixture(scope="module")
def refs(tiny, sample):
    return interp.extract.references(tiny, sample, kinds=("blur",))


@pytest.fixture
def own(tiny):
    """A VLM of one's own, whose weights may be changed."""
    return replace(tiny, model=copy.deepcopy(tiny.model))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


@pytest.fixture
def written(tmp_path):
    """A run of two shards, as tests/interp/store has it."""
    from interp.store import writing
    from interp.store.joining import stack
    from tests.support.writer import facts, one_sample

    def write(folder, seed=0):
        made = {k: one_sample(3 + i, 12 + i, i + seed) for i, k in enumerate("abc")}
        plan = [["a", "b"], ["c"]]
        run = writing.start_run(folder, {"model": "m", "dtype": "float32", "seed": seed}, plan)
        for number, names in enumerate(plan):
            shard = stack([made[n] for n in names], facts(names))
            statuses = {n: {"status": "ok", "reason": ""} for n in names}
            run.commit(number, shard, {"statuses": statuses})
        run.finish({})
        return folder

    write(tmp_path / "run")
    write.path = tmp_path / "run"
    return write
