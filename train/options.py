"""Options of the training commands: TRL's parser, no secrets in a file, no telemetry."""

import os
import re
import sys
from pathlib import Path

import yaml
from huggingface_hub import constants
from trl import TrlParser

_SECRET = re.compile(r"(^|_)(key|token|secret|password|credentials?)$", re.IGNORECASE)


def parsed(*classes: type) -> tuple:
    """Instances of some dataclasses from `--config FILE` and the command line.

    Raises:
        ValueError: unknown keys; a file whose `env:` names a secret, which would end in backups,
            logs and version control.
    """
    if "--config" in sys.argv[:-1]:
        path = Path(sys.argv[sys.argv.index("--config") + 1])
        content = yaml.safe_load(path.read_text())
        named = list((content.get("env") or {}) if isinstance(content, dict) else {})
        secret = [name for name in named if _SECRET.search(str(name))]
        if secret:
            raise ValueError(
                f"{path}: expected no secrets under env:, got {secret}; export them in the shell"
            )
    # TRL tells the hub that a trainer was made. Read from the environment when the hub's client is
    # imported, which may have been long ago.
    if "HF_HUB_DISABLE_TELEMETRY" not in os.environ:
        constants.HF_HUB_DISABLE_TELEMETRY = True
    return TrlParser(classes).parse_args_and_config()


def given(*classes: type) -> tuple:
    """`parsed`, or the end of the process: help, or one line that says what is wrong (code 2)."""
    if {"-h", "--help", "--help-all"} & set(sys.argv[1:]):
        _print_help(*classes)
        sys.exit(0)
    try:
        return parsed(*classes)
    except (ValueError, OSError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _print_help(*classes: type) -> None:
    """This package's options; with --help-all the hundreds of the trainer's besides."""
    *own, config = classes
    if "--help-all" in sys.argv:
        own.append(config)
    epilog = (
        f"--config FILE: all of these as YAML; train/configs/ has examples. Every field of "
        f"{config.__module__.split('.')[0]}'s {config.__name__} is an option too; --help-all lists "
        "them."
    )
    TrlParser(own, epilog=epilog).print_help()
