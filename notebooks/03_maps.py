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
# # Where does the model look? Maps of one answer, and how far to trust them
#
# The embedded model answers a question about a scene. We draw the map that Saliency-R1 rewards, its
# maps of effects beside it, ask how much of each lies on the evidence, and whether painting over
# what a map points at changes the answer.

# %%
import matplotlib.pyplot as plt
import pandas as pd

import interp

vlm = interp.load_model("tiny")
sample = interp.load_samples("digits", split="test", limit=8)[2]
completion = vlm.answer(sample.image, sample.question)
print(sample.question)
print(completion.text)

# %% [markdown]
# ## Kinds of map
# `direct` is Eq. 1; `bottleneck` goes through the thinking text as in the paper; `two_hop` does so
# in two steps that the network can execute; `effect` integrates first-order effects; `edge` cuts
# each patch's edge exactly. All are stored signed; over an image the positive part is drawn.

# %%
kinds = ("direct", "bottleneck", "two_hop", "effect", "edge")
ds = interp.extract.maps(vlm, sample, completion=completion, kinds=kinds)
figure, axes = plt.subplots(1, len(kinds), figsize=(2.3 * len(kinds), 2.2))
for kind, ax in zip(kinds, axes, strict=True):
    ds.vlm.plot("answer", kind, image=sample.image, boxes=sample.boxes, ax=ax)
    ax.set_title(kind, fontsize=9)

# %% [markdown]
# What the image gives directly to each token of the text, in logits:

# %%
ds.vlm.strip("direct")

# %% [markdown]
# ## On the evidence?
# The alignment score is the share of the map's mass inside the boxes. It means little without what
# a uniform map would score (`chance`), the same boxes elsewhere, and a centred rectangle.

# %%
scores = {}
for kind in kinds:
    found = interp.maps.alignment.alignment(interp.maps.holistic(ds, kind), sample.boxes)
    scores[kind] = {name: round(float(found[name]), 2) for name in found.data_vars}
pd.DataFrame(scores)

# %% [markdown]
# ## Faithful?
# Paint over the 15 % of the pixels that a map ranks highest (deletion), or show nothing else
# (insertion), and ask how likely the answer still is: 0 as on a blank image, 100 as on the
# original. After a deletion less is better, after an insertion more.

# %%
maps = {kind: interp.maps.holistic(ds, kind) for kind in kinds}
maps["random"] = interp.attribution.METHODS["random"](vlm, sample, 0, completion=completion)
found = interp.faithfulness.faithfulness(vlm, sample, maps, completion=completion)
part, whole = interp.measures.normalised(found)
table = (
    (part / whole).sel(text="answer", share=0.15).to_dataframe("score")["score"].unstack("change")
)
table.round(0)

# %% [markdown]
# `python analyses/faithfulness.py` does this for sixteen methods and a hundred scenes, with
# intervals.
#
# ## Look around
# Click on a token for its maps, its parts and its paths; on a head for its map and attention; on a
# patch for what it gives to every token. `explained.save("answer.html")` is the same as a file.

# %%
explained = interp.explain(
    vlm, sample.image, sample.question, completion=completion, boxes=sample.boxes
)
explained.show(methods=("rollout", "AttnLRP"))
