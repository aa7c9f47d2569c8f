"""The verdict's trained controls: a path that weights close is closed, and stays so in training."""

from types import SimpleNamespace

import pytest
import torch

import interp
from interp.inputs.prompts import teacher_forced
from train.sft import Data
from train.tiny.closed_paths import PATHS, ClosedPath


@pytest.fixture(scope="module")
def samples():
    """One of each family of questions."""
    return interp.load_samples("digits", split="test", limit=5)


@pytest.fixture(scope="module", params=PATHS)
def closed(request, samples):
    """tiny with a path closed, after two steps of a kind that opens it again."""
    vlm = interp.load_model("tiny", device="cpu")
    closing = ClosedPath(request.param)
    closing.on_train_begin(None, None, None, model=vlm.model, processing_class=vlm.processor)
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=1e-3, weight_decay=5.0)
    embedding = vlm.model.model.language_model.embed_tokens.weight
    before = embedding.detach().clone()
    batch = teacher_forced(vlm.processor, samples[0], None).batch
    for _ in range(2):
        optimizer.zero_grad()
        vlm.model(**batch, labels=batch["input_ids"]).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), torch.inf)
        optimizer.step()
        closing.on_step_end(None, None, None)
    assert norm < 1e3  # the strong weights push nothing else out of a clipped gradient
    assert not torch.equal(embedding, before)
    return SimpleNamespace(path=request.param, vlm=vlm)


def test_answer_rows_read_or_compute_exactly_nothing(closed, samples):
    for sample in samples:
        ledger = interp.extract.ledger(closed.vlm, sample)
        answer = ledger.sel(target=ledger["target_role"] == "answer")
        from_image = answer["direct"].sel(source=answer["source_role"] == "image")
        if closed.path == "image":
            assert (from_image == 0).all() and (answer["ffn"] != 0).all()
        else:
            assert (answer["ffn"] == 0).all() and (from_image != 0).any()


def test_other_rows_are_as_free_as_before(closed, samples):
    ledger = interp.extract.ledger(closed.vlm, samples[0])
    free = ledger.sel(target=~ledger["target_token"].isin(["the", "9"]))
    assert (free["direct"].sel(source=free["source_role"] == "image") != 0).any("source").all()
    assert (free["ffn"] != 0).all()


def test_the_classes_of_the_game_that_are_closed_are_0(closed, samples):
    """METHODS 3.6: P1 = P2 = 0 where answer rows see no image, in every norm and reading."""
    references = interp.extract.references(closed.vlm, samples[0], kinds=("twin",))
    game = interp.extract.shapley(
        closed.vlm, samples[0], references=references, sources=["image"], gauge=("centered", "raw")
    )
    answer = game.sel(target=game["target_role"] == "answer")
    assert (answer["total"] != 0).all()
    for name in ("shapley", "shapley_strict"):
        own_row = answer[name].isel(path_class=[0, 1])
        assert (own_row == 0).all() == (closed.path == "image")


@pytest.mark.parametrize(
    ("name", "path"), [("tiny-blind-rows", "image"), ("tiny-no-ffn-rows", "ffn")]
)
def test_the_embedded_controls_are_closed(name, path, samples):
    """On the words that they write themselves."""
    vlm = interp.load_model(name, device="cpu")
    texts = vlm.answers([(one.image, one.question) for one in samples])
    for sample, text in zip(samples, texts, strict=True):
        ledger = interp.extract.ledger(vlm, sample, completion=text)
        answer = ledger.sel(target=ledger["target_role"] == "answer")
        assert answer.sizes["target"] >= 1
        from_image = answer["direct"].sel(source=answer["source_role"] == "image")
        closed = from_image if path == "image" else answer["ffn"]
        assert (closed == 0).all()


def test_an_unknown_path_is_refused():
    with pytest.raises(ValueError, match="expected a path of .*image.*ffn.*, got 'all'"):
        ClosedPath("all")
    with pytest.raises(ValueError, match="expected closed_path of .*, got 'all'"):
        Data(n_samples=1, closed_path="all")


def test_a_thought_for_all_texts_is_of_the_embedded_scenes():
    """Where it would change nothing it is refused."""
    assert Data(n_samples=1, thinking="look.").thinking == "look."
    with pytest.raises(ValueError, match="thinking with the data digits alone, got 'jsonl:x'"):
        Data(n_samples=1, data="jsonl:x", thinking="look.")
