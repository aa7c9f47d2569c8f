"""
Which heads write the answer
============================

What each head writes from the image into the answer's logit: a grid of layers and heads.
"""

import interp

vlm = interp.load_model("tiny")
scene = interp.load_samples("digits", split="test", limit=8)[6]
ledger = interp.extract.ledger(vlm, scene)
from_image = ledger["direct"].isel(target=-1, source=(ledger["source_role"] == "image").values)
from_image.sum("source", keep_attrs=True).plot(cmap="RdBu_r", center=0, yincrease=False)
