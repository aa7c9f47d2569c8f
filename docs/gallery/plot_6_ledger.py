"""
A logit as a sum
================

Every layer's attention and FFN, as the ledger books them; with the embedding they sum to the logit.
"""

import matplotlib.pyplot as plt
import pandas as pd

import interp

vlm = interp.load_model("tiny")
scene = interp.load_samples("digits", split="test", limit=8)[6]
ledger = interp.extract.ledger(vlm, scene).isel(target=-1)
attention = ledger["direct_by_layer"].sum("role") + ledger["value_bias"].sum("head")
table = pd.DataFrame({"attention": attention.to_series(), "FFN": ledger["ffn"].to_series()})
table.plot.bar(xlabel="layer", ylabel="[logit, centered]", figsize=(5, 3))
plt.title(f"the logit of {str(ledger['target_token'].values)!r}: {float(ledger['logit']):.1f}")
