"""TRL's GRPOTrainer with auxiliary losses on the policy's own forward; nothing of it is copied."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from accelerate.utils import gather_object
from jaxtyping import Bool, Float
from torch import Tensor
from trl import GRPOTrainer

from interp.capture.heard import hearing
from interp.data.images import upright_size
from interp.data.sample import Sample
from interp.inputs import prompts as inputs
from interp.inputs.completions import Completion, completion
from interp.inputs.tokens import token_table
from interp.model import families
from interp.model.vlm import PROMPTS
from train.losses.micro_batch import Loss, MicroBatch, Text
from train.rewards import Reward


class GuidedTrainer(GRPOTrainer):
    """GRPO with losses on how the policy reads the texts that it wrote.

    Args:
        losses: added to GRPO's own, each with its weight.
        reward: one of the trainer's, whose verdicts the losses' gates read.
        args, given: as for GRPOTrainer.

    Raises:
        ValueError: a model that a loss cannot be computed of.
    """

    def __init__(self, *args, losses: Sequence[Loss], reward: Reward, **given):
        super().__init__(*args, **given)
        self.losses, self.reward = list(losses), reward
        self._noted = {mode: defaultdict(list) for mode in ("train", "eval")}
        parts = families.parts(self.accelerator.unwrap_model(self.model))
        self._layers = sorted({n for loss in losses for n in loss.layers(parts)})

    def _generate_and_score_completions(self, inputs):
        """TRL's, and for each completion its text, which goes where the tensors go."""
        output = super()._generate_and_score_completions(inputs)
        samples = [row["sample"] for row in inputs]
        lengths = output["completion_mask"].sum(dim=1).tolist()
        tokenizer = self.processing_class.tokenizer
        texts = [
            completion(tokenizer, ids[:n])
            for ids, n in zip(output["completion_ids"].tolist(), lengths, strict=True)
        ]
        output["text"] = self._texts(samples, texts, output)
        output["accuracy"] = torch.tensor(
            [-1.0 if one is None else one for one in self.reward.accuracy],
            device=output["prompt_ids"].device,
        )
        for loss in self.losses:
            passed = passed_gate(loss, output["text"], output["accuracy"])
            counts = torch.tensor([passed.sum(), len(passed)], device=passed.device)
            n_gated, n_all = self.accelerator.gather(counts).view(-1, 2).sum(dim=0)
            output[f"{loss.name}/n"] = n_gated if loss.per_gated else n_all
            self._note(f"{loss.name}/gated", float(n_gated / n_all))
        return output

    def _texts(self, samples: list[Sample], texts: list[Completion], output) -> list[Text]:
        """Token tables of prompts and completions; a sample's image is processed once."""
        system, processor = PROMPTS[self.reward.prompt], self.processing_class
        prompts: dict[int, dict] = {}
        found = []
        for k, (sample, text) in enumerate(zip(samples, texts, strict=True)):
            if id(sample) not in prompts:
                prompts[id(sample)] = inputs.prompts(processor, [sample], system)
            prompt = prompts[id(sample)]
            sampled = output["prompt_ids"][k][output["prompt_mask"][k].bool()].cpu()
            if not torch.equal(sampled, prompt["input_ids"][0]):
                raise ValueError(
                    f"{sample.id}: expected the prompt that was sampled from, got another; is the "
                    "reward's prompt that of the data?"
                )
            batch = inputs.extended(prompt, list(text.token_ids))
            sizes = [upright_size(image)[::-1] for image in sample.images]
            tokens = token_table(processor, batch, sample.boxes, sizes, system)
            found.append(Text(sample, tokens, len(sampled), sample.boxes))
        return found

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """GRPO's loss, and Σ weight · loss over the completions of the whole generation batch."""
        inner = self.accelerator.unwrap_model(model)
        with hearing(inner, self._layers) as heard:
            total = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        for loss in self.losses:
            values = loss(heard, _micro_batch(loss, inputs), self._note)
            n = inputs[f"{loss.name}/n"].clamp_min(1)
            total = total + loss.weight * values.sum() / n * self._per_step()
        return total

    def _per_step(self) -> float:
        """The factor by which sums over an optimizer's step become a generation batch's mean."""
        scale = self.accelerator.num_processes
        if self.model.training:
            scale *= self.args.steps_per_generation / self.current_gradient_accumulation_steps
        return scale

    def _note(self, name: str, value: float) -> None:
        self._noted["train" if self.model.training else "eval"][name].append(value)

    def log(self, logs, start_time=None):
        """TRL's, with means over all processes of what the losses said."""
        mode = "train" if self.model.training else "eval"
        own = self._noted[mode]
        for name in sorted(set(gather_object(list(own)))):
            values = own.get(name, [])
            sums = torch.tensor([sum(values), len(values)], device=self.accelerator.device)
            total, count = self.accelerator.gather(sums.float()).view(-1, 2).sum(dim=0).tolist()
            self._metrics[mode][name].append(total / count)
        own.clear()
        super().log(logs, start_time)


def passed_gate(
    loss: Loss, texts: list[Text], accuracy: Float[Tensor, " sequence"]
) -> Bool[Tensor, " sequence"]:
    """Which completions count: right enough, not masked out, and with boxes to look at."""
    counts = [one.n_written > 0 and text_of(loss, one).boxes is not None for one in texts]
    return (accuracy >= loss.tau) & torch.tensor(counts, device=accuracy.device)


def text_of(loss: Loss, text: Text) -> Text:
    """A text as a loss sees it: of a sham, the boxes stand elsewhere."""
    return text.moved() if loss.is_sham else text


def _micro_batch(loss: Loss, inputs) -> MicroBatch:
    """The trainer's inputs of one forward."""
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1).bool()
    return MicroBatch(
        texts=[text_of(loss, one) for one in inputs["text"]],
        ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        is_visible=mask,
        n_left=(inputs["prompt_mask"] == 0).sum(dim=1).tolist(),
        is_paid=passed_gate(loss, inputs["text"], inputs["accuracy"]),
    )
