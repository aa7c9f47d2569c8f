"""
Order-free shares
=================

The same image replaced by its twin: how the loss is shared out between three classes of paths.
"""

import interp

vlm = interp.load_model("tiny")
scenes = interp.load_samples("digits", split="test", limit=8)
references = interp.extract.references(vlm, scenes[6], pool=scenes, kinds=("mean", "twin"))
shares = interp.extract.shapley(vlm, scenes[6], references=references, sources=("image",))
table = shares["shapley"].sel(source_set="image", norm="live").isel(target=-1).to_pandas()
table.plot.bar(stacked=True, rot=0, figsize=(5, 3), ylabel="[logit, centered]")
