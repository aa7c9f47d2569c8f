"""Extraction at scale: processes, going on, memory, details, the estimate, and no network."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from analyses import direct_vs_indirect, extract
from analyses.reports.direct_vs_indirect import figures, findings
from interp.loading import CHECKPOINTS
from interp.store import opening as store
from tests.support import ROOT, commands, golden
from tests.support.writer import contents

ASKED = (
    "direct_vs_indirect",
    "--effects",
    "edge",
    "--limit",
    7,
    "--shard-size",
    2,
    "--batch-size",
    2,
    "--no-witness",
    "--threads",
    1,
)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A run of four shards by one process of one thread."""
    out = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    done = commands.run(extract, *ASKED, "--out", out)
    torch.set_num_threads(threads)
    assert "7 samples ok, 0 skipped, 0 failed" in done.stdout
    return out / "run"


@pytest.mark.long
def test_several_processes_go_on_to_the_same_bytes(one_process, tmp_path, tried):
    """Two processes, from a run that was cut off in its second shard."""
    run = tmp_path / "run"
    shutil.copytree(one_process, run)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"attributes": None}, indent=1))
    for number in (1, 2, 3):
        store.shard_path(run, number).with_suffix(".json").unlink()
    shutil.rmtree(store.shard_path(run, 1) / "total")
    for number in (2, 3):
        shutil.rmtree(store.shard_path(run, number))
    with pytest.raises(ValueError, match="a finished run, got one that was cut off"):
        interp.open_run(run)
    launch = [
        Path(sys.executable).parent / "accelerate",
        "launch",
        "--multi_gpu",
        "--num_processes",
        2,
        "analyses/extract.py",
        *ASKED,
        "--out",
        tmp_path,
        "--resume",
        "--log-level",
        "error",
    ]
    done = subprocess.run(
        list(map(str, launch)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("7 samples ok, 0 skipped, 0 failed") == 1
    assert contents(run) == contents(one_process)
    tried(
        "a run cut off, gone on with by two processes",
        1,
        "the bytes of one that a single process wrote undisturbed",
    )


def test_a_report_is_for_one_process(one_process, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = commands.run(direct_vs_indirect, "--from-run", one_process, "--out", tmp_path, code=2)
    assert "expected one process to draw a report, got WORLD_SIZE=2" in done.stderr


def out_of_memory(vlm, most: int):
    """Makes the model fail as a GPU does when more than `most` sequences come at once."""

    def refuse(_module, args, kwargs):
        if len(kwargs.get("input_ids", kwargs.get("inputs_embeds"))) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 EiB")

    return vlm.model.model.register_forward_pre_hook(refuse, with_kwargs=True)


@pytest.mark.long
def test_out_of_memory_halves_the_batch_and_marks_it(tmp_path, monkeypatch, caplog, tried):
    vlm = interp.load_model("tiny")
    monkeypatch.setattr("interp.load_model", lambda *_, **__: vlm)
    monkeypatch.setattr("analyses.reports.direct_vs_indirect.measure.certificate", lambda *_: {})
    asked = (
        "direct_vs_indirect",
        "--effects",
        "edge",
        "--limit",
        6,
        "--shard-size",
        4,
        "--batch-size",
        4,
        "--max-memory",
        "1G",
    )
    hook = out_of_memory(vlm, 2)
    commands.run(extract, *asked, "--out", tmp_path / "short")
    run = interp.open_run(tmp_path / "short/run")
    # Half the memory still holds four of these; the second shard has two and never met the limit.
    assert run.attrs["reduced"] == {"00000.zarr": {"batch_size": 1, "max_memory": 2**28}}
    assert "out of memory with Budget(batch_size=4" in caplog.text
    hook.remove()
    asked_page = ("--from-run", tmp_path / "short/run", "--out", tmp_path / "page")
    commands.run(direct_vs_indirect, *asked_page)
    assert "1 shards were made in smaller batches" in (tmp_path / "page/index.html").read_text()
    commands.run(extract, *asked, "--out", tmp_path / "enough")
    whole = interp.open_run(tmp_path / "enough/run")
    assert whole.attrs["reduced"] == {}
    assert run["text"].values.tolist() == whole["text"].values.tolist()
    np.testing.assert_allclose(run["effect"], whole["effect"], atol=1e-4)

    hook = out_of_memory(vlm, 0)  # not even one fits: no reason to fill a run with failures
    done = commands.run(extract, *asked, "--out", tmp_path / "none", code=2)
    assert "4 that all failed: OutOfMemoryError: CUDA out of memory" in done.stderr
    hook.remove()
    tried("memory runs out in a batch", 1, "half of the batch, and half again; the shard is marked")


def test_one_sample_too_large_fails_alone_and_is_tried_again(tmp_path, monkeypatch):
    vlm = interp.load_model("tiny")
    monkeypatch.setattr("interp.load_model", lambda *_, **__: vlm)
    monkeypatch.setattr("analyses.reports.direct_vs_indirect.measure.certificate", lambda *_: {})
    asked = (
        "direct_vs_indirect",
        "--effects",
        "edge",
        "--limit",
        3,
        "--text",
        "reference",
        "--batch-size",
        2,
        "--out",
        tmp_path,
    )
    lengths = sorted(
        len(interp.inputs.prompts.teacher_forced(vlm.processor, one, None).tokens.ids)
        for one in interp.load_samples("digits", limit=3)
    )
    assert lengths[-2] < lengths[-1]

    def refuse(_module, _args, kwargs):
        if kwargs["input_ids"].shape[1] == lengths[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 EiB")

    hook = vlm.model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    done = commands.run(extract, *asked, code=3)
    assert "2 samples ok, 0 skipped, 1 failed" in done.stdout
    hook.remove()
    done = commands.run(extract, *asked, "--resume")
    assert "3 samples ok, 0 skipped, 0 failed" in done.stdout
    assert interp.open_run(tmp_path / "run").sizes["sample"] == 3


@pytest.mark.long
@pytest.mark.parametrize("report", ["direct_vs_indirect", "faithfulness"])
def test_an_adapter_trained_further_under_its_name_is_noticed(report, tmp_path):
    """`--resume` goes on with the same weights or not at all."""
    folder = tmp_path / "adapter"
    shutil.copytree(CHECKPOINTS / "tiny-effect", folder)
    more = ("--effects", "edge") if report == "direct_vs_indirect" else ("--methods", "CAM")
    asked = (report, "--limit", 1, "--no-witness", *more, "--adapter", folder, "--out", tmp_path)
    commands.run(extract, *asked, "--model", "tiny-cold")
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "lora_B" in name)
    weights[name] = weights[name] + 0.01
    save_file(weights, file, metadata={"format": "pt"})
    done = commands.run(extract, *asked, "--model", "tiny-cold", "--resume", code=2)
    assert "adapter_hash" in done.stderr


@pytest.mark.long
def test_every_detail_redraws_to_the_same_tables(tmp_path):
    """Numbers of the report are the same from full, tokens and summary; only maps go missing."""
    tables, runs = {}, {}
    for detail in ("full", "tokens", "summary"):
        commands.run(
            extract,
            "direct_vs_indirect",
            "--limit",
            2,
            "--detail",
            detail,
            "--no-witness",
            "--text",
            "reference",
            "--out",
            tmp_path / detail,
        )
        runs[detail] = tmp_path / detail / "run"
        tables[detail] = golden.tables("direct_vs_indirect", runs[detail])
    for detail in ("full", "summary"):
        assert tables[detail].keys() == tables["tokens"].keys()
        for name, table in tables[detail].items():
            pd.testing.assert_frame_equal(table, tables["tokens"][name], rtol=1e-4, atol=1e-5)
    sizes = {d: sum(map(len, contents(run / "shards").values())) for d, run in runs.items()}
    assert sizes["full"] > sizes["tokens"] > sizes["summary"]
    full, summary = (interp.open_run(runs[d]) for d in ("full", "summary"))
    assert full["direct"].dims == ("target", "layer", "head", "source")
    assert "source" not in summary.dims
    drawn = {
        d: figures.examples(findings.find(interp.open_run(runs[d])), runs[d])
        for d in ("tokens", "summary")
    }
    assert drawn["tokens"] is not None and drawn["summary"] is None


@pytest.mark.parametrize(
    "report",
    [
        "direct_vs_indirect",
        pytest.param("faithfulness", marks=pytest.mark.long),
        pytest.param("before_after", marks=pytest.mark.long),
    ],
)
def test_a_dry_run_tells_shapes_disk_and_memory_and_writes_nothing(report, tmp_path):
    more = ("--effects", "edge") if report == "direct_vs_indirect" else ()
    more = more or (("--methods", "CAM", "random") if report == "faithfulness" else ())
    asked = (report, "--limit", 200, "--out", tmp_path / "x", *more)
    said = commands.run(extract, *asked, "--dry-run").stdout
    assert "200 samples in 8 shards of at most 25" in said
    assert "GiB of weights (torch.float32)" in said
    n_tokens = int(re.search(r"tokens  (\d+)", said)[1])
    if report == "before_after":  # images are as large as they will be
        said = commands.run(extract, *asked, "--dry-run", "--max-pixels", 3136).stdout
        assert int(re.search(r"tokens  (\d+)", said)[1]) < n_tokens
    assert not (tmp_path / "x").exists()
    if report != "direct_vs_indirect":
        return
    # The shapes are those of the model's layers and heads, and the disk is about what it takes.
    assert "(target 10, layer 6, head 4)" in said and "games" not in said
    took = commands.run(
        extract,
        *asked[:1],
        "--limit",
        8,
        *more,
        "--no-witness",
        "--no-images",
        "--shard-size",
        8,
        "--out",
        tmp_path / "y",
    )
    # Certificate and loading are in what it took; a machine may be busy in one of the two.
    each = float(said.split("in one process here, ")[1].split(" s a")[0])
    assert 0.02 < each < float(took.stdout.split(", ")[-1].split(" s")[0])
    files = contents(tmp_path / "y/run")
    stored = sum(len(one) for name, one in files.items() if not name.endswith(".json")) / 8
    told = float(said.split("images apart:")[1].split("KiB per sample")[0])
    assert 0.5 < told * 2**10 / stored < 2


@pytest.mark.long
def test_the_default_needs_no_network_and_sends_nothing(tmp_path, tried):
    """Model, data, witness and training, with every socket of the process refused.

    In a process of its own, in which the hub is not said to be offline.
    """
    code = (
        "import runpy, socket, sys\n"
        "class Refused(socket.socket):\n"
        "    def connect(self, address):\n"
        "        if self.family != socket.AF_UNIX:\n"
        "            print('REFUSED', address, file=sys.stderr); raise OSError('no network')\n"
        "    connect_ex = connect\n"
        "def refuse(*a, **k):\n"
        "    print('REFUSED', a, file=sys.stderr); raise OSError('no network')\n"
        "socket.socket = Refused\n"
        "socket.getaddrinfo = socket.create_connection = socket.gethostbyname = refuse\n"
        "from tests.support import commands\n"
        "from analyses import direct_vs_indirect\n"
        "out = sys.argv[1]\n"
        "commands.run(direct_vs_indirect, '--limit', 2, '--effects', 'edge',\n"
        "             '--out', out + '/a')\n"
        "sys.argv = ['x', '--config', 'train/configs/tiny-direct.yaml', '--max_steps', '1',\n"
        "            '--output_dir', out + '/g', '--per_device_train_batch_size', '4',\n"
        "            '--n_samples', '8', '--num_generations', '2']\n"
        "runpy.run_module('train.grpo', run_name='__main__')\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "WANDB"))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "REFUSED" not in done.stderr, done.stderr[-3000:]
    assert (tmp_path / "a/index.html").is_file()
    tried("no network, and nobody says so", 1, "everything embedded runs, nothing is asked for")
