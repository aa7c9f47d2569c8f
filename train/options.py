"""Options of the training commands: TRL's parser, and no secrets in a file."""

import re
import sys
from pathlib import Path

import yaml
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
    return TrlParser(classes).parse_args_and_config()
