"""Ranks: the processes of one distributed run, measuring together.

Every rank follows the same flow: what is averaged is the same on all of them to the bit, so all
decisions taken from it are, too. Only rank 0 writes.

Read next: ``objective``, which averages loss, gradient and Hessian products.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from torch_gfshadow.errors import GFShadowError, must

MEETING_SECONDS = 120.0
"""How long a rank waits for the others to attach, too."""
PATIENCE_SECONDS = 1800.0
"""How long a rank waits for an average; a rank that fails says so, and nobody waits for it."""
_SPIN_SECONDS, _NAP_SECONDS, _LOOK_SECONDS = 2e-3, 2e-4, 0.05
# A rank that leaves after its last average leaves one that is complete in a moment.
_GRACE_SECONDS = 2.0

_PART = 1 << 20
"""Entries of a long vector that are averaged at a time."""

_meetings = itertools.count()


class RankError(GFShadowError):
    """Another rank failed, left, or does not answer: there are no common numbers any more."""


def is_distributed() -> bool:
    """Return whether this process is one of several of an initialised process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank_here() -> int:
    """Return the number of this process."""
    return dist.get_rank()


@contextmanager
def spoken_for(ranks: Ranks | None) -> Iterator[None]:
    """Tell the other ranks if the block raises, so that none waits for this one."""
    try:
        yield
    except BaseException as error:
        if ranks is not None:
            ranks.leave(f"{type(error).__name__}: {error}")
        raise


class Ranks:
    """A process group of our own, in which a rank that fails does not hang the others.

    Args:
        meeting_seconds: How long to wait for the other ranks to make theirs.
        patience_seconds: How long to wait for them in an average.

    Attributes:
        rank: This process's number.
        size: How many there are.
        bytes_sent: Bytes this rank has put into averages so far.

    Raises:
        RankError: If not every rank makes one within ``meeting_seconds``.
        ValueError: If this process is the only one.
    """

    def __init__(
        self,
        meeting_seconds: float = MEETING_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        if not is_distributed():
            fix = "Call torch.distributed.init_process_group first, or leave it out."
            raise ValueError(must("distributed", "False or None in a run of one", "True", fix))
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.bytes_sent = 0
        self._patience = patience_seconds
        store = distributed_c10d._get_default_store()
        self._store = distributed_c10d.PrefixStore(f"torch_gfshadow/{next(_meetings)}", store)
        self._meet(meeting_seconds)
        self._group: Any = dist.new_group(timeout=timedelta(seconds=patience_seconds))

    def mean(self, tensor: Tensor, weight: float | None = None) -> Tensor:
        """Return Σ_r w_r · ``tensor`` over the ranks, the same bits on each; all must call it.

        Args:
            tensor: This rank's, of the same shape everywhere; not changed.
            weight: This rank's w_r; by default 1 / number of ranks.

        Raises:
            RankError: If another rank failed, left, or does not answer.
        """
        share = tensor.detach() * (1.0 / self.size if weight is None else weight)
        self.bytes_sent += share.nbytes
        self._wait(dist.all_reduce(share, group=self._group, async_op=True))
        return share

    def mean_in_place(self, vector: Tensor, weight: float | None = None) -> None:
        """Set ``vector`` to what :meth:`mean` returns, a part at a time."""
        for part in torch.split(vector, _PART):
            part.copy_(self.mean(part, weight))

    def agreed(self, value: float, device: torch.device) -> float:
        """Return rank 0's ``value`` on every rank; all must call it.

        Raises:
            RankError: As :meth:`mean`.
        """
        box = torch.tensor([value if self.rank == 0 else 0.0], dtype=torch.float32, device=device)
        self._wait(dist.all_reduce(box, group=self._group, async_op=True))
        return float(box)

    def share_of(self, samples: int, device: torch.device) -> float:
        """Return this rank's part of all samples: its weight in the mean over them."""
        mine = torch.tensor([float(samples)], dtype=torch.float32, device=device)
        return samples / (self.size * float(self.mean(mine)))

    def leave(self, why: str) -> None:
        """Tell the others that this rank takes part no more, so that none waits for it."""
        # the store is gone when the whole run is: then nobody waits, either
        with _ignored():
            self._store.set("left", f"rank {self.rank}: {why}")

    def _meet(self, seconds: float) -> None:
        self._store.set(f"here/{self.rank}", "1")
        everyone = [f"here/{rank}" for rank in range(self.size)]
        try:
            self._store.wait(everyone, timedelta(seconds=seconds))
        except Exception as error:
            missing = [r for r, key in enumerate(everyone) if not self._store.check([key])]
            raise RankError(
                must(
                    "attach",
                    "called on every rank of a distributed run",
                    f"none on rank {', '.join(map(str, missing))} within {seconds:.0f} s",
                    "Attach on all of them, or pass distributed=False for a shadow of this "
                    "rank's own objective.",
                )
            ) from error

    def _wait(self, work: Any) -> None:
        started = looked = time.perf_counter()
        while not work.is_completed():
            now = time.perf_counter()
            if now - started > _SPIN_SECONDS:
                time.sleep(_NAP_SECONDS)
            if now - looked > _LOOK_SECONDS:
                looked = now
                self._look(now - started)
        work.wait()

    def _look(self, waited: float) -> None:
        if waited > _GRACE_SECONDS and self._store.check(["left"]):
            raise RankError(f"The shadow ends here: {self._store.get('left').decode()}")
        if waited > self._patience:
            raise RankError(f"The shadow ends here: no answer within {self._patience:.0f} s.")


@contextmanager
def _ignored() -> Iterator[None]:
    try:
        yield
    except Exception:
        return
