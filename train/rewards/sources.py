"""Where a reward's maps come from: out of forwards that were made anyway (METHODS.md 5).

In this order: `generation`, the cache that sampling has left; `policy`, the forward that the
trainer has made for the policy's log-probabilities (under vLLM); `prompts`, one prefill of a
group's prompt extended by each completion; `texts`, a prefill of each text, which is always there.
The first that can stand for these texts is taken, and its first score is held against that of
`texts`: one that differs by more than its dtype explains is not asked again.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial

import torch

from interp.capture.extended import extended
from interp.capture.generated import Generated
from interp.capture.prefill import Prefills, prefills
from interp.capture.whole_texts import Forwards
from interp.data.sample import Sample
from interp.extract.maps import EXACT
from interp.extract.question import Query
from interp.extract.sharing import sharing
from interp.inputs.completions import Completion
from interp.model.vlm import VLM
from interp.scoring import RULES, Saliency, saliencies, score
from train.rewards.batch import Log
from train.rewards.reading import Reading, readings

log = logging.getLogger("reward")

SOURCES = ("generation", "policy", "prompts", "texts")
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
HALF_TOLERANCE = 5e-2
"""How far an alignment may be from that of a prefill of its own."""


class Unavailable(Exception):
    """A source cannot stand for these texts; its message says why."""


class Sources:
    """Scores of a policy's texts, each time from the first source that has them.

    Args:
        vlm: the policy, adapters in place.
        names: of `SOURCES`, which to ask; `texts` is asked last in any case.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, vlm: VLM, names: Iterable[str] = SOURCES):
        names = list(names)
        if set(names) - set(SOURCES):
            raise ValueError(f"expected sources of {SOURCES}, got {names}")
        self.vlm = vlm
        self.names = [name for name in SOURCES if name in names and name != "texts"]
        self.checked: set[str] = set()
        makers = {"generation": Generated, "policy": Forwards}
        self.listeners = {name: makers[name](vlm.model) for name in makers if name in names}

    def saliencies(
        self, texts: list[tuple[Sample, Completion]], numbers: list[int], log: Log, **options
    ) -> list[Saliency | str]:
        """As `interp.scoring.saliencies`; logs which source it was.

        Args:
            texts: samples with what the policy wrote for them.
            numbers: which of the last generation's sequences each is.
            log: takes a name and a number.
            options: of `interp.scoring.saliencies`.
        """
        # A group often writes one text several times; its map is one.
        keys = [(id(sample), text.token_ids) for sample, text in texts]
        once = [keys.index(key) for key in dict.fromkeys(keys)]
        own, source = self._first([texts[k] for k in once], [numbers[k] for k in once], options)
        by_key = {keys[k]: one for k, one in zip(once, own, strict=True)}
        found = [by_key[key] for key in keys]
        for name in SOURCES:
            log(f"source/{name}", float(name == source))
        return found

    def readings(
        self,
        texts: list[tuple[Sample, Completion]],
        numbers: list[int],
        change: Callable[[Sample], Sample] | None = None,
    ) -> list[Reading]:
        """As `train.rewards.reading.readings`, behind other images where they are changed.

        Args:
            texts, numbers: as for `saliencies`.
            change: from a sample to one with another image, which nobody has generated from.
        """
        keys = [(id(sample), text.token_ids) for sample, text in texts]
        once = [keys.index(key) for key in dict.fromkeys(keys)]
        changed = {id(texts[k][0]): texts[k][0] for k in once}
        if change is not None:
            changed = {key: change(sample) for key, sample in changed.items()}
        asked = [(changed[id(texts[k][0])], texts[k][1]) for k in once]
        names = [name for name in self.names if change is None or name not in self.listeners]
        with sharing():
            own = self._readings(asked, [numbers[k] for k in once], names)
        by_key = {keys[k]: one for k, one in zip(once, own, strict=True)}
        return [by_key[key] for key in keys]

    def _readings(self, texts, numbers: list[int], names: list[str]) -> list[Reading]:
        for name in names:
            try:
                found = readings(self.vlm, texts, self._forward(name, numbers))
            except Unavailable as reason:
                self._said(name, reason)
                continue
            if self._reads_right(name, texts[0], found[0]):
                return found
        return readings(self.vlm, texts, _prefilled)

    def _first(self, texts, numbers: list[int], options: dict) -> tuple[list, str]:
        # A map of exact effects is made of decoder passes of its own.
        is_read = RULES[options["rule"]].kind not in EXACT
        for name in list(self.names) if is_read else []:
            forward = self._forward(name, numbers)
            try:
                found = saliencies(self.vlm, texts, forward=forward, **options)
            except Unavailable as reason:
                self._said(name, reason)
                continue
            if self._is_right(name, texts[0], found[0], options):
                return found, name
        return saliencies(self.vlm, texts, **options), "texts"

    def drop(self) -> None:
        """Frees what was heard."""
        for listener in self.listeners.values():
            listener.drop()

    def close(self) -> None:
        """Takes the hooks off the policy."""
        for listener in self.listeners.values():
            listener.close()

    def _forward(self, name: str, numbers: list[int]) -> Callable:
        """A source of the prefills of texts, which are these of the sampled ones."""
        make = partial(self._heard, name) if name in self.listeners else self._prompts
        return lambda queries, own: make(queries, [numbers[k] for k in own])

    def _heard(self, name: str, queries: list[Query], numbers: list[int]) -> Prefills:
        batches, listener = [query.batch for query in queries], self.listeners[name]
        reason = listener.refusal(numbers, batches)
        if reason:
            raise Unavailable(reason)
        return listener.prefills(numbers, batches)

    def _prompts(self, queries: list[Query], _numbers: list[int]) -> Prefills:
        groups: dict[tuple, list[int]] = {}
        for k, query in enumerate(queries):
            key = query.attributes["data_hash"], query.attributes["sample"]
            groups.setdefault(key, []).append(k)
        if all(len(group) == 1 for group in groups.values()):
            raise Unavailable("no two texts of one prompt")
        try:
            return extended(self.vlm.model, [q.batch for q in queries], list(groups.values()))
        except ValueError as error:
            raise Unavailable(str(error)) from error

    def _is_right(self, name: str, text, found: Saliency | str, options: dict) -> bool:
        """Whether a source's first score is that of a prefill; asked once a run."""
        if name in self.checked:
            return True
        self.checked.add(name)
        (expected,) = saliencies(self.vlm, [text], **options)
        scored = [one if isinstance(one, str) else score(one, text[0]) for one in (found, expected)]
        if any(isinstance(one, str) for one in scored):
            is_right, difference = isinstance(found, str) == isinstance(expected, str), "a refusal"
        elif not any(one["has_mass"] for one in scored):
            self.checked.discard(name)  # 0 = 0 says nothing; the next one is compared
            return True
        else:
            difference = abs(float(scored[0]["alignment"]) - float(scored[1]["alignment"]))
            is_right = difference <= TOLERANCE.get(self.vlm.model.dtype, HALF_TOLERANCE)
        if not is_right:
            log.warning("maps from %s differ from a prefill's by %s; not used", name, difference)
            self.names.remove(name)
        return is_right

    def _reads_right(self, name: str, text, found: Reading) -> bool:
        """Whether a source's first reading is that of a prefill; asked once a run."""
        key = f"{name}, read"
        if key in self.checked:
            return True
        self.checked.add(key)
        (expected,) = readings(self.vlm, [text], _prefilled)
        difference = float(abs(found.on_evidence - expected.on_evidence).max())
        nats = float(abs(found.log_likelihood - expected.log_likelihood).max())
        limit = TOLERANCE.get(self.vlm.model.dtype, HALF_TOLERANCE)
        # Likelihoods are as much coarser as a logit's rounding is than a share's.
        is_right = difference <= limit and nats <= 10 * limit
        if not is_right:
            log.warning(
                "readings from %s differ from a prefill's by %.2g of attention and %.2g nat; "
                "not used",
                name,
                difference,
                nats,
            )
            self.names.remove(name)
        return is_right

    def _said(self, name: str, reason: Unavailable) -> None:
        """Logs why a source was passed over, once for each reason."""
        key = f"{name}: {reason}"
        if key not in self.checked:
            self.checked.add(key)
            log.warning("no maps from %s", key)


def _prefilled(queries: list[Query], _numbers: list[int]) -> Prefills:
    model = queries[0].model
    return prefills(model, [q.batch for q in queries], [q.rows for q in queries])
