"""Examples as the Trainer takes them: read ahead, of like lengths together, padded on the left."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from inspect import signature
from typing import Any

from vlkit.batching.encoding import Medium
from vlkit.lora.features import FrozenTower
from vlkit.lora.labels import IGNORED, PER_TOKEN, Labelled
from vlkit.lora.preparing import PIXELS, Preparer

AHEAD = 32  # rows that are read while the model is busy
SORTED = 32  # batches whose rows are sorted by length together


class Examples(Sequence[Labelled]):
    """The rows of a data set, each prepared when it is asked for or shortly before.

    Args:
        preparer: which makes a row from its number.
        workers: threads that read rows ahead; 0 for none.
    """

    def __init__(self, preparer: Preparer, workers: int = 0):
        self.preparer, self.workers = preparer, workers
        self._pool = ThreadPoolExecutor(workers, "vlkit-rows") if workers else None
        self._coming: OrderedDict[int, Future[Labelled]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.preparer.data)

    def __getitem__(self, index):
        if index >= len(self):  # one that nothing is learnt from
            row = self[index % len(self)]
            return replace(row, labels=row.labels.clone().fill_(IGNORED))
        coming = self._coming.pop(index, None)
        if coming is None or coming.cancelled():
            return self.preparer.prepare(index)
        row = coming.result()
        return row if self.preparer.is_ready(row) else self.preparer.prepare(index)

    def expect(self, index: int) -> None:
        """Prepare a row that will be asked for soon."""
        if self._pool is None or index in self._coming or index >= len(self):
            return
        while len(self._coming) >= 2 * AHEAD:  # of batches that a resumed run skips
            self._coming.popitem(last=False)[1].cancel()
        self._coming[index] = self._pool.submit(self.preparer.prepare, index)

    def close(self) -> None:
        """Read nothing ahead any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


class LengthSampler:
    """All rows in random order, those of one update of the weights of like lengths.

    The order hangs on seed and epoch alone, so that a resumed run, or one that takes an update's
    rows in smaller batches or on several processes, learns from the same rows.

    Args:
        examples: whose rows they are.
        lengths: of the rows.
        rows: of one update, on all processes together.
        seed: of the order.
        share: rows that processes take at once; an epoch is filled up to a multiple of it with rows
            that nothing is learnt from, where accelerate would repeat some.
    """

    def __init__(
        self,
        examples: Examples,
        lengths: Sequence[float],
        rows: int,
        seed: int,
        *,
        share: int = 1,
    ):
        self.examples, self.lengths, self.rows, self.seed = examples, lengths, rows, seed
        self.share, self.epoch = share, 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.share) * self.share

    def set_epoch(self, epoch: int) -> None:
        """Which pass over the data comes next."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """The rows' numbers in this epoch; an update that is not full comes last."""
        import numpy as np

        random = np.random.default_rng((self.seed, self.epoch))
        shuffled = random.permutation(len(self.lengths))
        span = self.rows * SORTED
        groups: list[Any] = []
        for start in range(0, len(self.lengths), span):
            some = shuffled[start : start + span]
            some = some[np.argsort([self.lengths[i] for i in some], kind="stable")]
            full = len(some) - len(some) % self.rows
            rest = random.permutation(len(some))[full:]  # else the longest were always the last
            kept = np.delete(some, rest)
            groups += [kept[i : i + self.rows] for i in range(0, full, self.rows)]
            last = some[rest]
        ordered = [groups[i] for i in random.permutation(len(groups))]
        return [int(i) for group in [*ordered, last] for i in group]

    def __iter__(self) -> Iterator[int]:
        order = [*self.order(), *range(len(self.lengths), len(self))]
        for index in order[:AHEAD]:
            self.examples.expect(index)
        for place, index in enumerate(order):
            if place + AHEAD < len(order):
                self.examples.expect(order[place + AHEAD])
            yield index


class Collator:
    """Labelled rows as one batch.

    Beside the processor's tensors it holds ``labels`` (rows, length), and, so that logits are made
    only where a label is, ``logits_to_keep`` (positions) and ``shift_labels`` (rows, positions),
    as transformers' models take them. Rows are padded on the left, so that their answers stand at
    the same positions as far as they can.

    Args:
        pad_token_id: which fills shorter rows up.
        tower: with it, ``pixel_values`` are its features of the rows' ``media``.
        rope: the model's ``get_rope_index``; with it, positions are counted here, where a GPU
            need not wait for it.
    """

    def __init__(
        self,
        pad_token_id: int,
        tower: FrozenTower | None = None,
        rope: Callable[..., tuple] | None = None,
    ):
        self.pad_token_id, self.tower, self.rope = pad_token_id, tower, rope

    def __call__(self, rows: Sequence[Labelled]) -> dict[str, Any]:
        import torch

        batch: dict[str, Any] = {}
        for name in PER_TOKEN:
            if name in rows[0].tensors:
                filler = self.pad_token_id if name == "input_ids" else 0
                batch[name] = _pad([each.tensors[name][0] for each in rows], filler)
        names = {name for each in rows for name in each.tensors} - set(PER_TOKEN)
        for name in sorted(names):
            batch[name] = torch.cat(
                [torch.as_tensor(each.tensors[name]) for each in rows if name in each.tensors]
            )
        batch |= self._positions(batch)
        batch |= self._features([medium for each in rows for medium in each.media])
        batch["labels"] = _pad([each.labels[0] for each in rows], IGNORED)
        following = batch["labels"][:, 1:]
        kept = (following != IGNORED).any(0).nonzero()[:, 0]
        return batch | {"logits_to_keep": kept, "shift_labels": following[:, kept].contiguous()}

    def _positions(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.rope is None or not any(name.endswith("_grid_thw") for name in batch):
            return {}
        known = signature(self.rope).parameters
        return {"position_ids": self.rope(**{n: v for n, v in batch.items() if n in known})[0]}

    def _features(self, media: Sequence[Medium]) -> dict[str, Any]:
        import torch

        pairs = list(zip(media, self.tower.encode(media) if self.tower else (), strict=True))
        return {
            name: torch.cat([features for medium, features in pairs if medium.kind == kind])
            for kind, name in PIXELS.items()
            if any(medium.kind == kind for medium in media)
        }


def _pad(rows: list, value: int):
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
