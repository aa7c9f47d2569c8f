"""Every option of every command, once: frozen dataclasses that argparse fills."""

from dataclasses import dataclass
from pathlib import Path

from analyses.run.arguments import option, positive, size


@dataclass(frozen=True)
class Command:
    """Options of every command that runs a model."""

    device: str | None = option(None, "default: a GPU where there is one")
    dtype: str = option(
        "auto",
        "default: auto, the checkpoint's",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
    )
    revision: str | None = option(None, "of the model's hub id", type=str)
    attn_implementation: str = option(
        "sdpa", "default: sdpa", choices=("sdpa", "eager", "flash_attention_2")
    )
    min_pixels: int | None = option(None, "images with fewer are enlarged", type=positive)
    max_pixels: int | None = option(None, "images with more are made smaller", type=positive)
    prompt: str | None = option(
        None,
        "system prompt: the chat template's own, or Saliency-R1's (default: that of the adapter's "
        "training; think for models from the hub, plain for embedded ones)",
        choices=("plain", "think"),
        type=str,
    )
    witness: bool | None = option(
        None, "ask TransformerLens too, on a copy; default below 2e9 parameters"
    )
    seed: int = option(
        0, "of the embedded scenes, of what is drawn, and of bootstraps (default: 0)"
    )
    log_level: str = option(
        "warning", "default: warning", choices=("debug", "info", "warning", "error")
    )


@dataclass(frozen=True)
class OfSamples(Command):
    """Options of every command that reads samples."""

    data: str = option(
        "digits",
        "digits, the embedded scenes (default), digits_brief, or jsonl:FOLDER, visual_cot:PATH, "
        "saliency_r1:FOLDER or hf:FOLDER",
    )
    split: str = option("test", "its split (default: test)")
    limit: int = option(200, "the first samples of the data (default: %(default)s)", type=positive)
    shuffle: bool = option(False, "in an order drawn by --seed instead of the file's")


@dataclass(frozen=True)
class Extraction(OfSamples):
    """Options of every command that measures samples into a run."""

    max_new_tokens: int = option(
        256, "length limit of the model's text (default: 256)", type=positive
    )
    out: Path = option(Path("reports/out"), "folder to write (default: %(default)s)")
    no_images: bool = option(False, "do not copy the samples' images into the run")
    resume: bool = option(False, "go on with the run that is in OUT; redraw it if it is finished")
    overwrite: bool = option(False, "replace the run that is in OUT")
    shard_size: int | None = option(
        None, "samples per shard (default: 64; with full detail 4)", type=positive
    )
    batch_size: int = option(16, "samples that write at once (default: %(default)s)", type=positive)
    max_memory: int = option(
        size("2G"), "of a batch besides the model, as 500M or 8G (default: 2G)", type=size
    )
    threads: int | None = option(
        None, "of this process on a CPU (default: torch's choice)", type=positive
    )

    @property
    def samples_per_shard(self) -> int:
        """As asked for, or so many as a shard can hold in memory."""
        return self.shard_size or 64


@dataclass(frozen=True)
class OfOneModel(Extraction):
    """Options of reports on one model."""

    model: str = option("tiny", "embedded name, hub id or folder (default: tiny)")
    adapter: str | None = option(None, "peft adapter, a folder or hub id")


@dataclass(frozen=True)
class DirectVsIndirect(OfOneModel):
    """Options of what `direct_vs_indirect.py` measures."""

    compare: str | None = option(
        None, "a second model or an adapter on the first, on the same texts"
    )
    text: str = option(
        "completion",
        "explain the model's own greedy text, or the samples' text (default: completion)",
        choices=("completion", "reference"),
    )
    gauge: str = option(
        "contrast",
        "gauge of the logits: against a foil, which is the twin's answer where there is one and "
        "else the likeliest other token; above the vocabulary's mean; or raw (default: contrast)",
        choices=("contrast", "centered", "raw"),
    )
    effects: str = option(
        "all",
        "all paths and the verdict, or edge effects alone, which is quick (default: all)",
        choices=("all", "edge"),
    )
    detail: str = option(
        "tokens",
        "of direct contributions: by layer, head and source token; by source token; or sums by "
        "role, layer and target alone (default: tokens)",
        choices=("full", "tokens", "summary"),
    )

    @property
    def samples_per_shard(self) -> int:
        """Fewer in full detail, which is large."""
        return self.shard_size or (4 if self.detail == "full" else 64)


@dataclass(frozen=True)
class Faithfulness(OfOneModel):
    """Options of what `faithfulness.py` measures."""

    methods: tuple[str, ...] | None = option(
        None,
        "some of those that faithfulness.py --help names (default: all)",
        nargs="+",
        type=str,
    )


@dataclass(frozen=True)
class BeforeAfter(Extraction):
    """Options of what `before_after.py` measures."""

    before: str = option("tiny-cold", "the model that was trained (default: tiny-cold)")
    after: tuple[str, ...] = option(
        ("tiny-saliency-r1", "tiny-effect", "tiny-grpo-control"),
        "adapters or models, a control without saliency reward last",
        nargs="+",
        type=str,
    )
    text: str | None = option(
        None,
        "forced through all models: the samples' text, the default where all have thinking, or the "
        "first model's own",
        choices=("reference", "before"),
        type=str,
    )
    batch_size: int = option(32, "samples that write at once (default: %(default)s)", type=positive)


@dataclass(frozen=True)
class _FromRun:
    """Options of commands that draw a report."""

    from_run: Path | None = option(
        None, "redraw from this run (a folder OUT or OUT/run) instead of a model", type=Path
    )


@dataclass(frozen=True)
class _DryRun:
    """Options of `extract.py` besides its report's."""

    dry_run: bool = option(False, "say what it would take; no weights needed")


@dataclass(frozen=True)
class DirectVsIndirectReport(_FromRun, DirectVsIndirect):
    """Options of `direct_vs_indirect.py`."""


@dataclass(frozen=True)
class FaithfulnessReport(_FromRun, Faithfulness):
    """Options of `faithfulness.py`."""

    limit: int = option(100, "the first samples of the data (default: %(default)s)", type=positive)
    out: Path = option(Path("reports/out/faithfulness"), "folder to write (default: %(default)s)")


@dataclass(frozen=True)
class BeforeAfterReport(_FromRun, BeforeAfter):
    """Options of `before_after.py`."""

    limit: int = option(100, "the first samples of the data (default: %(default)s)", type=positive)
    out: Path = option(Path("reports/out/before_after"), "folder to write (default: %(default)s)")


@dataclass(frozen=True)
class ExtractDirectVsIndirect(_DryRun, DirectVsIndirect):
    """Options of `extract.py direct_vs_indirect`."""

    out: Path = option(
        Path("reports/out/direct_vs_indirect"), "folder to write (default: %(default)s)"
    )


@dataclass(frozen=True)
class ExtractFaithfulness(_DryRun, Faithfulness):
    """Options of `extract.py faithfulness`."""

    out: Path = option(Path("reports/out/faithfulness"), "folder to write (default: %(default)s)")


@dataclass(frozen=True)
class ExtractBeforeAfter(_DryRun, BeforeAfter):
    """Options of `extract.py before_after`."""

    out: Path = option(Path("reports/out/before_after"), "folder to write (default: %(default)s)")


EXTRACTIONS = {
    "direct_vs_indirect": ExtractDirectVsIndirect,
    "faithfulness": ExtractFaithfulness,
    "before_after": ExtractBeforeAfter,
}
"""By the report that the run is for."""


@dataclass(frozen=True)
class Validation(OfSamples):
    """Options of `validate_extractor.py`."""

    model: str = option("tiny", "embedded name, hub id or folder (default: tiny)")
    adapter: str | None = option(None, "peft adapter, a folder or hub id")
    limit: int = option(3, "the first samples of the data (default: %(default)s)", type=positive)
    out: Path = option(Path("reports/out/certificate.json"), "file to write (default: %(default)s)")


@dataclass(frozen=True)
class Page(Command):
    """Options of `page.py`."""

    model: str = option("tiny", "embedded name, hub id or folder (default: tiny)")
    adapter: str | None = option(None, "peft adapter, a folder or hub id")
    image: tuple[Path, ...] = option((), "a picture, or several", nargs="+", type=Path)
    question: str | None = option(None, "in plain words; needed with --image", type=str)
    answer: str | None = option(None, "the right answer, where it is known", type=str)
    data: str = option("digits", "without --image: a data set, as for direct_vs_indirect.py")
    split: str = option("test", "its split (default: test)")
    sample: str | None = option(None, "id of a sample in it (default: the first)", type=str)
    text: str | None = option(
        None, "the text to explain (default: the model's own greedy one)", type=str
    )
    partner: str | None = option(
        None,
        "another image for the same question, or twin, the sample's own: the four paths through "
        "the words",
        type=str,
    )
    compare: str | None = option(
        None,
        "beside it, on the same text: a second model, or an adapter on the first; or partner, the "
        "same model on the partner's image, each with its own text",
        type=str,
    )
    kinds: tuple[str, ...] = option(
        ("direct", "bottleneck", "two_hop", "effect"),
        "of map, edge and slot besides; these cost a forward per token",
        nargs="+",
        type=str,
    )
    methods: tuple[str, ...] = option(
        (), "maps of other methods besides, as faithfulness.py names them", nargs="+", type=str
    )
    pixels: bool = option(False, "paint every patch, too: two forwards each")
    no_graph: bool = option(False, "leave the graph of paths out, the dearest part of a long text")
    heads: int = option(
        8,
        "so many heads of each token with map and attention (default: %(default)s)",
        type=positive,
    )
    max_new_tokens: int = option(
        256, "length limit of the model's text (default: 256)", type=positive
    )
    threads: int | None = option(
        None, "of this process on a CPU (default: torch's choice)", type=positive
    )
    out: Path = option(Path("reports/out/answer.html"), "file to write (default: %(default)s)")
