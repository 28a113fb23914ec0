"""Pace: what schedules do to an optimizer, as a smooth function of the step.

A schedule gives every step its own rate and momenta, known only when the step comes. Here they are
a function r of a continuous step count s: in the cell [k, k + 1] a parabola with the mean that step
k had, whose slope at every edge is the difference of the two cells; where that is a jump, 0 on both
sides. Beyond the last step known the cells go on as a cubic. So a solver may look ahead
of the run, and is told later by how much it was misled.

The flow meant is the one at each step's own numbers η, which jump at every edge. Averaging over a
cell gives it back from the solution of x' = (r + r''/12)·u up to the second order of what r changes
by in a step: it is x − (r'/12 − ∫(η − r))·u, the integral being from the start of the cell and 0 at
its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

Numbers = tuple[float, ...]

EDGE = 1e-6
"""Part of a step that is none."""
_KEPT = 8
_STEEP = 0.3
"""Change from step to step, over the larger number, from which on it is a jump."""
_JUMP = 1e-3
_ORDER = 3
"""Of the polynomial that foresees the cells to come."""


class Pace:
    """The numbers of every step, as a function of s.

    Args:
        first: Step count of the first cell.
        guess: What holds until the first cell is known.
    """

    def __init__(self, first: int, guess: Numbers) -> None:
        self._begun = self._first = first
        self._cells: list[Numbers] = []
        self._guess = guess

    @property
    def known(self) -> int:
        """End of the last known cell."""
        return self._first + len(self._cells)

    @property
    def last(self) -> Numbers:
        """Numbers of the last known cell."""
        return self._cells[-1] if self._cells else self._guess

    def add(self, step: int, numbers: Numbers) -> None:
        """Take in the numbers of cell ``step``; cells in between were like the last one."""
        while self.known < step:
            self._cells.append(self.last)
        if self.known == step:
            if any(_is_jump(a, b) for a, b in zip(self.last, numbers, strict=True)):
                self._begun = step
            self._cells.append(numbers)

    def forget(self, before: float) -> None:
        """Drop the cells that nothing from ``before`` on depends on."""
        drop = min(math.floor(before) - 3, self.known - _KEPT) - self._first
        if drop > 0:
            del self._cells[:drop]
            self._first += drop

    def cell(self, step: int) -> Numbers:
        """Return the mean numbers of a cell, known or foreseen."""
        ahead = step - self.known + 1
        if ahead <= 0:
            return self._cells[max(step - self._first, 0)] if self._cells else self._guess
        # Newton's formula on the differences of the last cells
        out = [0.0] * len(self._guess)
        for j, differences in enumerate(self._differences(_ORDER)):
            weight = math.comb(ahead + j - 1, j)
            out = [o + weight * d for o, d in zip(out, differences, strict=True)]
        return tuple(max(o, 0.0) for o in out)

    def at(self, s: float) -> Numbers:
        """Return the numbers at a step count between steps; on the edge of two cells, the later."""
        step = math.floor(s + EDGE)
        x = s - step - 0.5
        parts = zip(self.cell(step), self._edge(step), self._edge(step + 1), strict=True)
        # mean, slope and bend: v + b·x + c·(x² − 1/12), and r''/12 = c/6
        found = (v + 0.5 * (e + f) * x + 0.5 * (f - e) * (x * x + 1.0 / 12.0) for v, e, f in parts)
        return tuple(max(value, 0.0) for value in found)

    def offset(self, s: float) -> float:
        """Return by what multiple of u the solution x is ahead of the flow meant at ``s``."""
        step = math.floor(s + EDGE)
        left, right = self._edge(step)[0], self._edge(step + 1)[0]
        x, b, c = s - step - 0.5, 0.5 * (left + right), 0.5 * (right - left)
        ran = b * (0.5 * x * x - 0.125) + c * ((x**3 + 0.125) / 3.0 - (x + 0.5) / 12.0)
        return (b + 2.0 * c * x) / 12.0 + ran

    def jump(self, after: float) -> float:
        """Return the first edge of two known cells beyond ``after`` where the numbers jump."""
        for k in range(math.floor(after + EDGE) + 1, self.known):
            before, then = self.at(k - 2.0 * EDGE), self.at(float(k))
            if any(abs(a - b) > _JUMP * max(a, b) for a, b in zip(before, then, strict=True)):
                return float(k)
        return math.inf

    def reach(self, allowed: float) -> float:
        """Return how many steps ahead of the known the foreseen may be trusted.

        The cubic through the last cells is off by |Δ⁴|·a⁵/120 in the sum over a steps. No further
        than there are steps behind.

        Args:
            allowed: Error of the sum of numbers over those steps, in units of the numbers.
        """
        reach = max(1.0, float(self.known - self._begun))
        differences = self._differences(_ORDER + 1)
        if len(differences) <= _ORDER + 1:  # not enough cells to tell: by what the last one tells
            differences += [differences[-1]] * (_ORDER + 2 - len(differences))
        for size, fourth in zip(differences[0], differences[-1], strict=True):
            size, fourth = max(size, 1e-300), abs(fourth)
            if fourth > 1e-9 * size and len(self._cells) > 1:
                reach = min(reach, (120.0 * allowed * size / fourth) ** 0.2)
        return reach

    def _edge(self, k: int) -> Numbers:
        """Return the slopes at the edge between cells k − 1 and k."""
        last = self.known - 1
        if last <= self._first:
            return (0.0,) * len(self._guess)
        if k > last:
            pairs = zip(self.cell(k - 1), self.cell(k), strict=True)
        else:
            i = max(k - self._first, 1)
            pairs = zip(self._cells[i - 1], self._cells[i], strict=True)
        return tuple(0.0 if _is_jump(a, b) else b - a for a, b in pairs)

    def _differences(self, order: int) -> list[Numbers]:
        """Return the last cell's numbers and their backward differences, by order."""
        since = max(self._begun - self._first, len(self._cells) - order - 1, 0)
        row = self._cells[since:] or [self._guess]
        out = [row[-1]]
        while len(row) > 1:
            row = [_minus(b, a) for a, b in pairwise(row)]
            out.append(row[-1])
        return out

    def state_dict(self) -> dict[str, Any]:
        """Return the cells that are kept."""
        cells, guess = [list(cell) for cell in self._cells], list(self._guess)
        return {"first": self._first, "begun": self._begun, "cells": cells, "guess": guess}

    @classmethod
    def from_state(cls, saved: Mapping[str, Any]) -> Pace:
        """Return what :meth:`state_dict` was called on."""
        self = cls(int(saved["first"]), tuple(map(float, saved["guess"])))
        self._begun = int(saved["begun"])
        self._cells = [tuple(map(float, cell)) for cell in saved["cells"]]
        return self


def _minus(a: Numbers, b: Numbers) -> Numbers:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _is_jump(before: float, then: float) -> bool:
    return abs(then - before) > _STEEP * max(before, then)
