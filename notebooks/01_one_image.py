# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One image: what wrote this answer, and what does it lose without the image?
#
# The embedded model looks at one scene of handwritten digits. We take the logit of its answer apart
# (the *ledger*), then ask what that logit loses when the answer's row cannot read the image (the
# *edge effect*), and compare the two.

# %%
import matplotlib.pyplot as plt

import interp

vlm = interp.load_model("tiny")
sample = interp.load_samples("digits", split="test", limit=8)[6]
print(sample.question, "→", sample.answer)
image = interp.data.images.open_image(sample.image)  # also where yours is a path
image.resize((image.width * 3, image.height * 3))

# %% [markdown]
# The model's own text, greedily. Everything below explains *this* text, token by token.

# %%
completion = vlm.answer(sample.image, sample.question)
print(completion.text)

# %% [markdown]
# ## The ledger
# For every token of thinking and answer: which layer, head and source token wrote how much of its
# logit. The parts sum to the model's own logit; `remainder` is what is left.

# %%
ledger = interp.extract.ledger(vlm, sample, completion=completion)
ledger

# %%
parts = ledger.embed + ledger.ffn.sum("layer") + ledger.value_bias.sum(("layer", "head"))
parts = parts + ledger.direct.sum(("layer", "head", "source"))
print("largest |logit - sum of parts|:", float(abs(ledger.logit - parts).max()))
assert float(abs(ledger.remainder / ledger.magnitude).max()) < 1e-5

# %% [markdown]
# Eq. 1, of which the rewarded map is made: what the image's tokens give directly to the answer,
# signed. Red raises the answer's logit above the vocabulary's mean, blue lowers it; the box is the
# evidence.

# %%
interp.plots.use_style()
direct = interp.maps.token_map(ledger, "answer")
figure, axes = plt.subplots(1, 2, figsize=(6, 2.6))
interp.plots.scene(sample.image, sample.boxes, axes[0])
limit, aspect = float(abs(direct).max()), image.height / image.width
interp.plots.signed_map(direct, sample.boxes, axes[1], limit=limit, aspect=aspect)
figure.colorbar(axes[1].images[0], ax=axes[1], label="Direct contribution [logit]")
plt.show()

# %% [markdown]
# ## The effect
# The row that predicts the answer is computed again without the values it reads from a source set.
# What the logit loses splits exactly into paths.

# %%
effects = interp.extract.effects(vlm, sample, completion=completion)
answer = effects.isel(target=interp.maps.target_index(effects, "answer"))
answer.effect.to_pandas().assign(total=answer.total).round(3)

# %% [markdown]
# If "the indirect contribution is minor" held for this token, the columns `ffn`, `attention` and
# `norm` of the row `image` would be small beside `direct`.

# %%
image = answer.sel(source_set="image")
gap = float(abs(image.effect.sum("path") - image.total))
direct_part, total = float(image.effect.sel(path="direct")), float(image.total)
print(f"direct {direct_part:.2f} of {total:.2f} logits; gap {gap:.1e}")
assert gap < 1e-4

# %% [markdown]
# Read it so: were the answer's row blind to the image, the logit of its token would be lower by the
# second number; the first is the part that Eq. 1 counts. The rest is real too: FFNs that computed
# with what the row read, less what the final norm takes back. All of it is above the vocabulary's
# mean (*centered*), where about half of Eq. 1's write is common to every answer of the kind.
# Against one other answer, which is what decides between the two, less of it is direct:

# %%
foils = ["blue" if token != "blue" else "red" for token in effects.target_token.values]
against = interp.extract.effects(
    vlm, sample, completion=completion, gauge="contrast", foils=foils, sources=["image"]
)
answer = against.isel(target=interp.maps.target_index(against, "answer"), source_set=0)
direct_part, total = float(answer.effect.sel(path="direct")), float(answer.total)
print(f"against {foils[-1]!r}: direct {direct_part:.2f} of {total:.2f} logits")

# %% [markdown]
# One image decides nothing. `make report` does this for 200 images, with intervals.
