"""Sample: some entries of the parameters, read between steps to see whether somebody moved them.

Values, because nothing else tells: fused steps and edits of ``.data`` move no version counter.
Parameters in the CPU's memory are read there: each of torch's operations takes as long as a whole
step at which nothing is due may (``benchmarks/idle.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._tree import is_sharded, local

_CLOSELY, _VALUES = 8, 32
_FEW = 4  # in a row: reading these takes a tenth of what 32 with gaps take
address, bits_of = Tensor.data_ptr, memoryview.tobytes


class Sample:
    """A few entries of every parameter: up to 32 of eight, the first and the last among them.

    Four in the middle of each other one, which whoever swaps or clips a whole tensor moves, too.

    Args:
        params: What is looked at.

    Attributes:
        bits: The entries as :meth:`mark` saw them, where they are in the CPU's memory.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        n, last = min(len(params), _CLOSELY), len(params) - 1
        self._params = list(params)
        self._closely = {i * last // max(n - 1, 1) for i in range(n)}
        self._at: list[int] = []
        self._views: list[list[Tensor]] = []
        self._memory: list[Any] | None = None
        self.bits: list[bytes] | None = None
        self._values: list[Tensor] = []

    @property
    def marks(self) -> list[Tensor]:
        """What :meth:`mark` saw, one vector per dtype and device; empty before the first."""
        if self.bits is None:
            return self._values
        parts = iter(self.bits)
        return [
            torch.cat(
                [torch.frombuffer(bytearray(next(parts)), dtype=view.dtype) for view in views]
            )
            for views in self._views
        ]

    @marks.setter
    def marks(self, marks: Sequence[Tensor]) -> None:
        seen = self._read()
        self.bits, self._values = None, []
        if seen:
            self._values = [m.to(now) for m, now in zip(marks, seen, strict=True)]

    def mark(self) -> None:
        """Remember the entries as they are now."""
        if not self._in_place():
            self._locate()
        if self._memory is not None:
            self.bits, self._values = list(map(bits_of, self._memory)), []
        else:
            self.bits, self._values = None, self._read()

    def unmoved(self) -> bool:
        """Say whether no bit changed since :meth:`mark`, without any of torch's operations.

        False is "look closer", with :meth:`moved`: elsewhere in memory, or not in the CPU's.
        """
        if self.bits is None or self._memory is None or not self._in_place():
            return False
        return list(map(bits_of, self._memory)) == self.bits

    def in_memory(self) -> tuple[list[Tensor], list[int], list[Any]] | None:
        """Return the parameters looked at, their addresses, and what to read :attr:`bits` from.

        Good while the parameters stay there; ``None`` where entries are not in the CPU's memory.
        """
        return None if self._memory is None else (self._params, self._at, self._memory)

    def moved(self) -> bool:
        """Say whether the values changed since :meth:`mark`."""
        marks = self.marks
        return bool(marks) and not all(map(_same, marks, self._read()))

    def _read(self) -> list[Tensor]:
        if not self._in_place():
            self._locate()
        return [torch.cat(views) for views in self._views]

    def _in_place(self) -> bool:
        """Say whether the entries are where they were found; setting ``.data`` moves them."""
        return bool(self._at) and list(map(address, self._params)) == self._at

    def _locate(self) -> None:
        groups: dict[Any, list[Tensor]] = {}
        located, plain = [], True
        for i, param in enumerate(self._params):
            part = local(param.detach())
            flat = part.reshape(-1)
            middle = max(0, flat.numel() - _FEW) // 2
            few = slice(middle, middle + _FEW)
            many = slice(None, None, max(1, flat.numel() // _VALUES))
            entries = flat[many if i in self._closely else few]
            groups.setdefault((part.dtype, part.device), []).append(entries)
            located.append(part.data_ptr())
            # a copy would not follow: of these, and of shards, look anew each time
            plain = plain and part.is_contiguous() and not is_sharded(param)
        self._views = list(groups.values())
        self._at = located if plain else []
        self._memory = None
        if plain and all(device.type == "cpu" for _, device in groups):
            # NumPy has no bfloat16; bits are all that is compared
            as_bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}
            views = [view for views in self._views for view in views]
            if all(view.element_size() in as_bits for view in views):
                self._memory = [
                    view.view(as_bits[view.element_size()]).numpy().data for view in views
                ]


def _same(mark: Tensor, now: Tensor) -> bool:
    # a run that diverged is not an edit: NaN equals NaN here
    return torch.equal(mark, now) or torch.equal(mark.nan_to_num(), now.nan_to_num())
