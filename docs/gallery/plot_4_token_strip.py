"""
Which words the image writes
============================

What all visual tokens give directly to each token of the text.
"""

import interp

vlm = interp.load_model("tiny")
scene = interp.load_samples("digits", split="test", limit=8)[6]
ledger = interp.extract.ledger(vlm, scene, detail="tokens")
ledger.vlm.strip()
