"""Is the extractor right on this model, dtype, attention implementation and adapter?

    python analyses/validate_extractor.py
    python analyses/validate_extractor.py --model Qwen/Qwen2.5-VL-3B-Instruct --dtype bfloat16
    python analyses/validate_extractor.py --adapter runs/grpo/final --witness
    python analyses/validate_extractor.py --model M --data jsonl:FOLDER

Runs the oracles of METHODS.md 6 on the loaded model with a few samples, prints every check with its
error and bound, and writes the certificate as JSON. Exit code 1 if a check failed.
"""

import sys
import time

from analyses.options import Validation
from analyses.run import command
from analyses.run.arguments import parse


def main() -> int:
    """Certifies, prints and writes."""
    options = parse(Validation, __doc__)
    command.listen(options.log_level)
    start = time.monotonic()
    import interp
    from analyses.run import models
    from analyses.run import samples as samples_of

    try:
        samples = samples_of.load(options)
        vlm = models.load(options, options.model, options.adapter)
        certificate = interp.validate.certify(vlm, samples, witness=options.witness)
    except interp.validate.NotCertified as error:
        certificate = error.certificate
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(certificate)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(certificate.to_json())
    for failure in certificate.failures:
        print(f"failed: {failure}", file=sys.stderr)
    n_passed = int(certificate.checks["is_passed"].sum())
    print(
        f"{options.out}: {n_passed} of {certificate.checks.sizes['check']} checks passed, "
        f"{time.monotonic() - start:.0f} s"
    )
    return 0 if certificate.is_passed else 1


if __name__ == "__main__":
    sys.exit(main())
