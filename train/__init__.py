"""Supervised fine-tuning and GRPO with the certified extractor as a reward, over TRL and peft."""

import os

# TRL tells the hub that a trainer was made; the hub's client reads this when it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
