"""
Along which paths
=================

What the answer loses when its row cannot read each source set, split by path.
"""

import interp

vlm = interp.load_model("tiny")
scene = interp.load_samples("digits", split="test", limit=8)[6]
effects = interp.extract.effects(vlm, scene).isel(target=-1)
table = effects["effect"].to_pandas()
ax = table.plot.barh(stacked=True, figsize=(6, 2.5), xlabel="[logit, centered]")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
