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
# # A scene and its counterfactual twin: which path carries the change?
#
# Every embedded scene has a twin in which one attribute of the evidence is another, so that the
# answer is another. We replace the scene's visual tokens by the twin's and ask on which paths the
# answer's logit learns of it.

# %%
import matplotlib.pyplot as plt
import numpy as np

import interp

vlm = interp.load_model("tiny")
samples = interp.load_samples("digits", split="test", limit=40)
sample = next(s for s in samples if s.family == "digit_by_color")
print(sample.question, "→", sample.answer, "| twin →", sample.twin.answer)

# %%
interp.plots.use_style()
figure, axes = plt.subplots(1, 2, figsize=(5, 2.4))
for ax, one, title in zip(axes, (sample, sample.twin), ("scene", "twin"), strict=True):
    interp.plots.scene(one.image, one.boxes, ax)
    ax.set_title(f"{title}: {one.answer}")
plt.show()

# %% [markdown]
# The reference holds the twin's visual embeddings. It is one only for tokens in whose place the
# twin's own text has another token: here the answer, not the words that both texts share.
# The text explained is the data's for this scene, as the twin's is for the twin;
# `completion=vlm.answer(sample.image, sample.question)` explains what the model writes.

# %%
references = interp.extract.references(vlm, sample, kinds=["twin"])
nodes = interp.extract.node_effects(
    vlm, sample, references=references, sources=["image", "evidence"]
)
twin = nodes.sel(reference="twin")
answer = twin.isel(target=interp.maps.target_index(twin, "answer"))
print("defined for:", twin.target_token.values[twin.is_defined.sel(source_set="image").values])
answer.effect.to_pandas().assign(total=answer.total).round(2)

# %% [markdown]
# A row is a source set, a column a path: `direct`, the set's values under the clean pattern;
# `routing`, the pattern that its keys change; `self`, earlier layers of the answer's own row; `ffn`
# and `norm` of that row; `mediated`, other positions that saw the set. The evidence's total can
# have another sign than the image's: the tower mixes patches, so the digit stands in its
# neighbours' vectors too, and swapping the boxes' tokens alone leaves those in.

# %% [markdown]
# The same total, order-free: what the image writes straight into the logit, what the rest of the
# row reads off it, and what other positions carry. "Strict" counts only values as direct, not
# the attention pattern that chose them. `live` lets the final norm see the changed row, `frozen`
# keeps the clean run's; under `live` a change of the row's length counts as direct.

# %%
shares = interp.extract.shapley(vlm, sample, references=references, sources=["image"])
image = shares.sel(reference="twin", source_set="image").isel(
    target=interp.maps.target_index(shares, "answer")
)
image.shapley.transpose("norm", "path_class").to_pandas().assign(total=image.total).round(2)

# %%
image.shapley_strict.transpose("norm", "path_class").to_pandas().assign(total=image.total).round(2)

# %% [markdown]
# Every split sums to the total effect.

# %%
assert np.allclose(answer.effect.sum("path"), answer.total, atol=1e-4)
assert np.allclose(image.shapley.sum("path_class"), image.total, atol=1e-4)

# %% [markdown]
# Which patches? The exact effect of swapping each patch's key and value alone for the twin's,
# beside the direct map of Eq. 1. Red raises the logit, blue, which is hatched, lowers it.

# %%
asked = {"positions": [int(answer.target_position)]}
patches = interp.extract.patch_effects(
    vlm, sample, form="slot", reference=references["twin"], **asked
)
ledger = interp.extract.ledger(vlm, sample, detail="tokens", **asked)
maps = {
    "Eq. 1": interp.maps.token_map(ledger, 0),
    "patch swapped for the twin's": interp.maps.on_grid(patches.total.isel(target=0)),
}
figure, axes = plt.subplots(1, 2, figsize=(6, 2.6))
aspect = sample.image.height / sample.image.width
for ax, (title, values) in zip(axes, maps.items(), strict=True):
    limit = float(abs(values).max())
    interp.plots.signed_map(values, sample.boxes, ax, limit=limit, aspect=aspect)
    figure.colorbar(ax.images[0], ax=ax, label="[logit]")
    ax.set_title(title)
plt.show()

# %% [markdown]
# One scene decides nothing. `make report` gives a verdict over a hundred images of each kind.
