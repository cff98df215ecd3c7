"""Data that are read forward, again for every pass, with one chunk of examples in memory."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvature.errors import InputError
from curvature.models.data.checksums import Checksums, checksums
from curvature.models.data.items import joined
from curvature.models.trees import StreamedTensors, Structure, leaves_by_name, mapped, tree_of

__all__ = ["Source", "Stream"]

_Pair = tuple[Structure, Structure]


@dataclass(frozen=True, eq=False)
class Source:
    """Where the examples of a stream come from.

    Attributes
    ----------
    name
        What the user passed, for messages.
    batches
        Starts a pass: ``number of the pass -> batches (inputs, targets)`` of any size, as structures of tensors.
    workers
        Number of processes that read.
    divides
        Whether each of them reads all examples unless the dataset divides them, as an iterable one must.
    """

    name: str
    batches: Callable[[int], Iterator[_Pair]]
    workers: int = 0
    divides: bool = False


@dataclass
class _Pass:
    """One pass: its iterator, the random generators that it draws from, and the rows that are held."""

    number: int
    iterator: Iterator[_Pair]
    states: tuple[Any, Any, Tensor]
    held: list[_Pair] = field(default_factory=list)
    first: int = 0  # number of the first row that is held
    end: int = 0  # number of rows that were read
    drawn: set[str] = field(default_factory=set)  # generators that reading has moved


class Stream:
    """Examples that are read forward, batch by batch; a request for earlier ones starts a new pass.

    The first pass counts the examples and keeps a checksum of each (8 bytes). Every later pass is compared with it.

    Parameters
    ----------
    source
        Starts a pass.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.passes = 0
        self._expected: Checksums | None = None  # after the first pass
        self._sums: list[Checksums] = []
        self._pass: _Pass | None = None
        self._chunk: tuple[int, int, _Pair] | None = None
        self._head: tuple[int, int, _Pair] | None = None  # the first chunk is asked for most often, and is kept

    def count(self) -> int:
        """Read the first pass to its end.

        Returns
        -------
        int
            The number of examples.

        Raises
        ------
        InputError
            If there are none, or each worker of a loader reads all of them.
        """
        while self._expected is None:
            current = self._pass or self._start()
            if self._read_batch(current):
                _release(current, current.end)
        if self._pass is not None and self._pass.number == 1:
            self._pass = self._chunk = None  # from here on, the first examples are read in a second pass too
        return len(self._expected)

    def sha256(self) -> str:
        """Hash the checksums of all examples, which tells these data from others without another pass.

        Returns
        -------
        str
            In hexadecimal.
        """
        self.count()
        assert self._expected is not None
        return hashlib.sha256(self._expected.tobytes()).hexdigest()

    def read(self, rows: slice) -> _Pair:
        """Read some examples.

        Parameters
        ----------
        rows
            Contiguous examples. Those after the present position are read on to, earlier ones start a new pass.

        Returns
        -------
        inputs, targets
            Structures of tensors. Fewer rows than asked for where the stream ends.

        Raises
        ------
        InputError
            If the examples are not those of the first pass.
        """
        start, stop = rows.start or 0, rows.stop
        for held in (self._head, self._chunk):
            if held is not None and held[0] <= start and stop <= held[1]:
                return _rows(held[2], start - held[0], stop - held[0])
        self._chunk = None
        current = self._pass
        if current is None or start < current.first:
            current = self._start()
        while current.end < stop and self._read_batch(current):
            _release(current, start)
        parts = []
        position = current.first
        for pair in current.held:
            parts.append(_rows(pair, max(0, start - position), max(0, stop - position)))
            position += _length(pair)
        inputs, targets = zip(*parts, strict=True)
        pair = joined(inputs, torch.cat, "inputs"), joined(targets, torch.cat, "targets")
        self._chunk = (start, min(stop, current.end), pair)
        _release(current, stop)
        if self._expected is not None and current.end >= len(self._expected):
            self._read_batch(current)  # there must not be more
        if start == 0 and current.number > 1 and self._head is None:
            self._head = self._chunk
        return pair

    def tensors(self) -> tuple[StreamedTensors, StreamedTensors]:
        """Inputs and targets as rows that are read when they are indexed; both share one reading."""
        count = self.count()

        def part(position: int) -> StreamedTensors:
            return StreamedTensors(lambda rows: tree_of(self.read(rows)[position]), count)

        return part(0), part(1)

    def _start(self) -> _Pass:
        self.passes += 1
        number, self._pass, self._sums = self.passes, None, []  # the workers of a pass that was left end here
        # Each pass has other states: with the same ones, random augmentation would look like fixed data.
        states = _states() if number == 1 else _seeded(number)
        self._pass = _Pass(number, iter(()), states)
        with self._generators(self._pass):
            self._pass.iterator = iter(self.source.batches(number))
        self._pass.drawn.clear()  # a loader draws one seed when it starts
        return self._pass

    def _next(self, current: _Pass) -> _Pair | None:
        with self._generators(current):
            return next(current.iterator, None)

    def _read_batch(self, current: _Pass) -> bool:
        """Hold one more batch; False at the end of the pass."""
        pair = self._next(current)
        if pair is None:
            current.iterator = iter(())
            self._end(current)
            return False
        sums = checksums(_leaves(pair))
        if self._expected is None:
            _refuse_non_finite(pair, current.end)
            self._sums.append(sums)
        else:
            expected = self._expected[current.end : current.end + len(sums)]
            if len(expected) < len(sums) or not np.array_equal(expected, sums):
                raise InputError(self._difference(current, sums))
        # A loader may use the memory of a batch again for the next one.
        current.held.append(mapped(Tensor.clone, pair))
        current.end += len(sums)
        return True

    def _end(self, current: _Pass) -> None:
        """Finish the first pass, or compare the length of a later one."""
        if self._expected is not None:
            if current.end < len(self._expected):
                raise InputError(self._shorter(current))
            return
        if not self._sums:
            raise InputError("the data are empty.")
        self._expected = np.concatenate(self._sums)
        self._sums = []
        workers = self.source.workers
        if workers > 1 and self.source.divides:
            counts = np.unique(self._expected, return_counts=True)[1]
            if not (counts % workers).any():
                raise InputError(
                    f"each of the {workers} workers of {self.source.name} reads all examples, so every example comes "
                    f"{workers} times and each epoch of training, too, has it {workers} times. Divide them in "
                    "__iter__ with torch.utils.data.get_worker_info(), or pass num_workers=0."
                )

    def _shorter(self, current: _Pass) -> str:
        assert self._expected is not None
        name, before = self.source.name, len(self._expected)
        if current.end:
            return (
                f"{name} has {before} examples in its first pass and {current.end} in pass {current.number}, so the "
                "matrix would depend on when the data are read. Every pass must give the same examples."
            )
        return (
            f"{name} can be read only once: it has {before} examples in its first pass and none in pass "
            f"{current.number}, and every product needs a pass. Let __iter__ start anew each time it is called (open "
            "the file in __iter__, or write __iter__ as a generator function)."
        )

    def _difference(self, current: _Pass, sums: Checksums) -> str:
        """Say which example is another one than in the first pass, and why if that can be seen."""
        assert self._expected is not None
        expected = self._expected[current.end :]
        count = min(len(expected), len(sums))
        same = expected[:count] == sums[:count]
        example = current.end + (count if same.all() else int((~same).argmax()))
        if example == len(self._expected):
            return (
                f"{self.source.name} has {example} examples in its first pass and more in pass {current.number}, so "
                "the matrix would depend on when the data are read. Every pass must give the same examples."
            )
        drawn = sorted(current.drawn)
        rest = [sums]
        seen = current.end + len(sums)
        while seen <= len(self._expected) and (pair := self._next(current)) is not None:
            rest.append(checksums(_leaves(pair)))
            seen += len(rest[-1])
        cause = self._cause(np.concatenate(rest), expected, drawn)
        return (
            f"example {example} of {self.source.name} is another one in pass {current.number} than in the first pass, "
            f"so the matrix would depend on when the data are read. {cause}"
        )

    def _cause(self, sums: Checksums, expected: Checksums, drawn: list[str]) -> str:
        if np.array_equal(np.sort(sums), np.sort(expected)):
            return (
                "Both passes have the same examples in another order: pass shuffle=False, and leave shuffle buffers "
                "and random samplers out. The mean does not depend on the order."
            )
        if drawn:
            return (
                f"Reading draws random numbers ({', '.join(drawn)}): switch random transforms off, or draw from a "
                "generator that __iter__ seeds anew."
            )
        workers = "The workers of a loader get new seeds in each pass. " if self.source.workers else ""
        return (
            f"Its numbers change. {workers}Switch random transforms (augmentation) off, or seed them by the position "
            "of the example; an iterator that two passes share, and a file that is being written, have the same effect."
        )

    @contextmanager
    def _generators(self, current: _Pass) -> Iterator[None]:
        """Let the pass draw from its own generators: those of the user are not moved."""
        users, before = _states(), current.states
        _set_states(before)
        try:
            yield
        finally:
            current.states = _states()
            _set_states(users)
            moved = (
                before[0] != current.states[0],
                any(np.any(a != b) for a, b in zip(before[1], current.states[1], strict=True)),
                not torch.equal(before[2], current.states[2]),
            )
            current.drawn |= {
                name for name, is_moved in zip(("random", "numpy", "torch"), moved, strict=True) if is_moved
            }


def _states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _seeded(seed: int) -> tuple[Any, Any, Tensor]:
    of_numpy = np.random.RandomState(seed).get_state()
    return random.Random(seed).getstate(), of_numpy, torch.Generator().manual_seed(seed).get_state()


def _set_states(states: tuple[Any, Any, Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def _release(current: _Pass, start: int) -> None:
    """Drop batches that end before a row."""
    while current.held and current.first + _length(current.held[0]) <= start:
        current.first += _length(current.held.pop(0))


def _leaves(pair: _Pair) -> list[Tensor]:
    return [leaf for part in pair for _, leaf in leaves_by_name(part, "")]


def _length(pair: _Pair) -> int:
    return len(_leaves(pair)[0])


def _rows(pair: _Pair, start: int, stop: int) -> _Pair:
    inputs, targets = mapped(lambda leaf: leaf[start:stop], pair)
    return inputs, targets


def _refuse_non_finite(pair: _Pair, offset: int) -> None:
    for part, name in zip(pair, ("inputs", "targets"), strict=True):
        for leaf_name, leaf in leaves_by_name(part, name):
            if leaf.is_floating_point() and not torch.isfinite(leaf).all():
                bad = ~torch.isfinite(leaf.reshape(len(leaf), -1)).all(dim=1)
                raise InputError(
                    f"the {leaf_name} contain NaN or infinity, first in example {offset + int(bad.nonzero()[0])}."
                )
