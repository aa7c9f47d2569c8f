"""State around a call is the caller's business: the same numbers in it as without."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import interp
from interp.model.state import undisturbed


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND = {
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def case():
    vlm, sample = interp.load_model("tiny"), interp.load_samples("digits", limit=7)[6]
    return vlm, sample, interp.extract.references(vlm, sample, kinds=("blur",))


TWO = {"positions": [50, 55]}
CALLS = {
    "ledger": lambda v, s, r: interp.extract.ledger(v, s, **TWO)["direct"],
    "effects": lambda v, s, r: interp.extract.effects(v, s, **TWO)["effect"],
    "node_effects": lambda v, s, r: interp.extract.node_effects(v, s, references=r, **TWO)[
        "effect"
    ],
    "shapley": lambda v, s, r: interp.extract.shapley(v, s, references=r, **TWO)["shapley"],
    "first_order": lambda v, s, r: interp.extract.first_order(v, s, **TWO)["first_order"],
    "patch_effects": lambda v, s, r: interp.extract.patch_effects(v, s, positions=[55])["effect"],
    "maps": lambda v, s, r: interp.extract.maps(v, s, max_targets=2)["map"],
    "origins": lambda v, s, r: interp.extract.origins(v, s, **TWO)["direct_by_origin"],
}


@pytest.mark.parametrize("call", CALLS)
def test_every_extraction_gives_the_same_numbers(call, case):
    expected = CALLS[call](*case)
    for name, around in AROUND.items():
        with around():
            found = CALLS[call](*case)
        assert found.dtype == expected.dtype, name
        scale = float(abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * scale, err_msg=name)


def test_a_model_that_is_disturbed_inside_is_undisturbed_again():
    """Calls inside the context do not set the state once more, unless somebody has undone it."""
    from peft import LoraConfig, get_peft_model

    vlm = interp.load_model("tiny", device="cpu")
    model = get_peft_model(vlm.model, LoraConfig(lora_dropout=0.5, target_modules=["v_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    held, sample = interp.wrap(model, vlm.processor), interp.load_samples("digits", limit=1)[0]
    expected = interp.extract.ledger(held, sample)
    with undisturbed(model):
        model.train()
        assert interp.extract.ledger(held, sample).identical(expected)
        assert model.training
        model.eval()
        with torch.autocast("cpu", torch.bfloat16):
            assert interp.extract.ledger(held, sample).identical(expected)
        with torch.inference_mode():
            assert interp.extract.ledger(held, sample).identical(expected)
