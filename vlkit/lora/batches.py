"""Examples as the Trainer takes them: labelled when they are needed, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlkit.lora.data import TrainingData
from vlkit.lora.labels import IGNORED, PER_TOKEN, Labelled, label_example
from vlkit.models import VLM


class Examples(Sequence[Labelled]):
    """The data of a model, each row labelled when it is asked for."""

    def __init__(self, vlm: VLM, data: TrainingData, max_length: int | None):
        self.vlm, self.data, self.max_length = vlm, data, max_length

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index):
        return label_example(self.vlm, self.data[index], max_length=self.max_length)


class Collator:
    """Labelled examples as one batch.

    Beside the processor's tensors it holds ``labels`` (rows, length), and, so that logits are made
    only where a label is, ``logits_to_keep`` (positions) and ``shift_labels`` (rows, positions),
    as transformers' models take them. Rows are padded on the left, so that their answers stand at
    the same positions as far as they can.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Labelled]) -> dict[str, Any]:
        import torch

        batch: dict[str, Any] = {}
        for name in PER_TOKEN:
            if name in examples[0].tensors:
                filler = self.pad_token_id if name == "input_ids" else 0
                batch[name] = _pad([each.tensors[name][0] for each in examples], filler)
        names = {name for each in examples for name in each.tensors} - set(PER_TOKEN)
        for name in sorted(names):
            batch[name] = torch.cat(
                [torch.as_tensor(e.tensors[name]) for e in examples if name in e.tensors]
            )
        batch["labels"] = _pad([each.labels[0] for each in examples], IGNORED)
        following = batch["labels"][:, 1:]
        kept = (following != IGNORED).any(0).nonzero()[:, 0]
        return batch | {"logits_to_keep": kept, "shift_labels": following[:, kept].contiguous()}


def _pad(rows: list, value: int):
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
