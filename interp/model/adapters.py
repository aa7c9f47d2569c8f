"""Adapters that name their base model by content, so that none is put on another model.

`adapter_config.json` of peft names a base by its path or hub id, under which other weights may lie
tomorrow. `base.json` beside it holds the base's fingerprint and the prompt of its training.
"""

import json
from pathlib import Path

BASE_FILE = "base.json"


def name_base(folder: Path, vlm, **facts) -> None:
    """Writes down beside an adapter which model it was trained on, with which prompt, and facts."""
    content = {"base": vlm.name, "base_hash": vlm.fingerprint, "prompt": vlm.prompt} | facts
    (Path(folder) / BASE_FILE).write_text(json.dumps(content, indent=1) + "\n")
    # peft writes the folder that an embedded name stands for, which is another one elsewhere.
    path = Path(folder) / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": vlm.name}
    path.write_text(json.dumps(config, indent=1) + "\n")


def base_of(folder: str) -> dict | None:
    """The record that `name_base` wrote beside an adapter; None where there is none."""
    path = Path(folder) / BASE_FILE
    return json.loads(path.read_text()) if path.is_file() else None


def check_base(folder: str, fingerprint: str) -> None:
    """Raises ValueError if an adapter that names its base was trained on another model."""
    record = base_of(folder)
    if record is not None and record["base_hash"] != fingerprint:
        raise ValueError(
            f"{Path(folder).name}: expected the model it was trained on ({record['base']}, weights "
            f"{record['base_hash']}), got weights {fingerprint}; load that model"
        )
