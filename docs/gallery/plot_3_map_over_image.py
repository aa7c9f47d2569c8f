"""
A map over its image
====================

The positive part of one map, over the image that the dataset is about, with the evidence box.
"""

import interp

vlm = interp.load_model("tiny")
scene = interp.load_samples("digits", split="test", limit=8)[6]
maps = interp.extract.maps(vlm, scene, kinds=("effect",), only="answer")
maps.vlm.plot("answer", "effect")
