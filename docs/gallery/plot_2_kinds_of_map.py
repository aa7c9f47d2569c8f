"""
Kinds of map, side by side
==========================

What each patch gives to the answer: directly (Eq. 1), through the thinking text, and in all.
"""

import matplotlib.pyplot as plt

import interp

vlm = interp.load_model("tiny")
scene = interp.load_samples("digits", split="test", limit=8)[6]
kinds = ("direct", "bottleneck", "effect", "edge")
maps = interp.extract.maps(vlm, scene, kinds=kinds, only="answer")
figure, axes = plt.subplots(1, len(kinds), figsize=(10, 2.4), layout="constrained")
for ax, kind in zip(axes, kinds, strict=True):
    maps.vlm.plot("answer", kind, image=False, ax=ax)
    ax.set_title(kind)
