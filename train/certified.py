"""No training of a model on which the extractor is not right."""

import logging
from pathlib import Path

from transformers import TrainerCallback

from interp.model.identity import fingerprint
from interp.model.vlm import VLM
from interp.validate import Certificate, certify

log = logging.getLogger("certified")


class Certified(TrainerCallback):
    """Certifies the extractor on the very model that is about to be trained, or stops.

    At the start of training, adapters in place: see `interp.validate.certify`. The certificate is
    kept, and written to the output folder as certificate.json.

    Args:
        prompt: key of `interp.model.vlm.PROMPTS`, the system prompt that the model is trained with.

    Raises:
        NotCertified: when training starts, if a check fails.
    """

    def __init__(self, prompt: str = "plain"):
        self.prompt = prompt
        self.vlm: VLM | None = None
        """The policy, once training has begun."""
        self.certificate: Certificate | None = None

    def on_train_begin(self, args, state, control, *, model, processing_class, **_):
        """Certifies; transformers' Trainer calls this before the first step."""
        name = str(model.config._name_or_path)
        self.vlm = VLM(model, processing_class, name, self.prompt, fingerprint(model))
        self.certificate = certify(self.vlm)
        if state.is_world_process_zero:
            path = Path(args.output_dir) / "certificate.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.certificate.to_json())
            log.info("extractor certified: %s", path)
