"""Saliency: how much of the policy's map of its own text lies on the evidence (METHODS.md 5)."""

from interp.scoring import RULES, Saliency, numbers
from train.rewards.batch import Batch, Log, Written
from train.rewards.metrics import LOGGED, mean


class Alignment:
    """The share of a map inside the boxes; 0 where the format is invalid.

    Args:
        rule: of `interp.scoring.RULES`, the map that is scored.
        is_gated: 0 too where the answer is wrong.
        options: max_targets, n_nodes and max_memory of `interp.scoring.saliencies`.

    Raises:
        ValueError: an unknown rule.
    """

    name = "saliency"
    reads_maps = True

    def __init__(self, rule: str = "direct", *, is_gated: bool = False, **options):
        if rule not in RULES:
            raise ValueError(f"expected a rule of {tuple(RULES)}, got {rule!r}")
        self.options = {"rule": rule} | options
        self.is_gated = is_gated

    def __call__(self, batch: Batch, log: Log) -> list[float | None]:
        """Alignments; the map's controls go to the log as means over the texts that have one."""
        maps = batch.saliencies(**self.options)
        pairs = list(zip(maps, batch.written, strict=True))
        scored_by_number = {
            k: numbers(found, one.sample)
            for k, (found, one) in enumerate(pairs)
            if isinstance(found, Saliency)
        }
        scored = [one for one in scored_by_number.values() if not isinstance(one, str)]
        for name, title in LOGGED.items():
            mean(log, title, [float(one[name]) for one in scored])
        return [
            self._value(found, one, scored_by_number.get(k)) for k, (found, one) in enumerate(pairs)
        ]

    def _value(self, found, written: Written, scored) -> float | None:
        if found is None or (self.is_gated and not written.accuracy):
            return 0.0
        if isinstance(found, str) or isinstance(scored, str):
            return None
        return float(scored["alignment"])


class OfMap:
    """A function of one's own of each text's map: from (map, sample, text) to a number or None.

    Args:
        function: takes an `interp.scoring.Saliency`, a `Sample` and a `Completion`.
        name: in the trainer's log.
        rule: of `interp.scoring.RULES`, the map that the function is given.
        options: as for `Alignment`.

    Raises:
        ValueError: an unknown rule.
    """

    reads_maps = True

    def __init__(self, function, name: str, rule: str = "direct", **options):
        if rule not in RULES:
            raise ValueError(f"expected a rule of {tuple(RULES)}, got {rule!r}")
        self.function, self.name = function, name
        self.options = {"rule": rule} | options

    def __call__(self, batch: Batch, _log: Log) -> list[float | None]:
        """The function's values; 0 where the format is invalid, None where there is no map."""
        values: list[float | None] = []
        for found, one in zip(batch.saliencies(**self.options), batch.written, strict=True):
            if isinstance(found, Saliency):
                value = self.function(found, one.sample, one.text)
                values.append(None if value is None else float(value))
            else:
                values.append(0.0 if found is None else None)
        return values
