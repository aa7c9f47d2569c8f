"""An adapter that names its base → one model in a folder, for what takes no adapters.

    python -m train.merge runs/sft/final --out runs/sft/merged

A second training on top of a first one, lmms-eval and vLLM's server want this.
"""

import argparse
from pathlib import Path

from interp.loading import load_model
from interp.model.adapters import keep_prompt, merged
from train.refusals import in_one_line


@in_one_line()
def main() -> None:
    """Loads base and adapter, adds the one to the other and saves model and processor."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("adapter", help="folder that train.grpo or train.sft made, or its name")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    vlm = load_model(options.adapter, device="cpu")
    if not vlm.adapter:
        parser.error(f"expected an adapter, got the model {options.adapter}")
    merged(vlm.model).save_pretrained(options.out)
    vlm.processor.save_pretrained(options.out)  # with the limits on pixels
    keep_prompt(options.out, vlm.prompt)
    print(options.out)


if __name__ == "__main__":
    main()
