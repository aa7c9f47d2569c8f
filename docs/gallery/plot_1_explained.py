"""
One answer at a glance
======================

The picture, what each patch does to the answer, the paths, and the text.
"""

import interp

vlm = interp.load_model("tiny")
scene = interp.load_samples("digits", split="test", limit=8)[6]
interp.explain(vlm, scene.image, scene.question, boxes=scene.boxes).figure()
