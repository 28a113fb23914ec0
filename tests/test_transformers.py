"""The Hugging Face callback and Accelerate, against the real packages: GPT-2 on real text."""

from __future__ import annotations

import functools

import pytest
import torch
from loops import assert_identical, fingerprint

import torch_gfshadow as gfs

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

from torch_gfshadow.integrations.transformers import (  # noqa: E402
    GFShadowTrainerCallback,
    own_loss,
)

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]
LENGTH, SAMPLES = 12, 16


@functools.cache
def windows():
    """Windows of the manual every Python ships, as bytes."""
    from pydoc_data.topics import topics

    text = topics["assert"].encode()[: LENGTH * SAMPLES]
    ids = torch.tensor(list(text)).view(SAMPLES, LENGTH)
    labels = ids.clone()
    # The trainer divides by the number of labels, the model by those left after its shift: with a
    # first label that counts, the steps use 11/12 of the model's own gradient (the audit says so).
    labels[:, 0] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


def gpt2(dropout=0.0):
    torch.manual_seed(2)
    config = transformers.GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=8, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=0, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def trained(
    out, callback=None, dropout=0.0, resume=None, epochs=2, *, cls=transformers.Trainer,
    follows=False, compute_loss_func=None, **options,
):  # fmt: skip
    model = gpt2(dropout)
    args = transformers.TrainingArguments(
        output_dir=str(out), num_train_epochs=epochs, use_cpu=True,
        report_to=[], disable_tqdm=True, seed=5, logging_strategy="no",
        **{"save_strategy": "no", "max_grad_norm": 0.0, "per_device_train_batch_size": 4} | options,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    trainer = cls(
        model, args, train_dataset=windows(), eval_dataset=windows()[:4],
        optimizers=(optimizer, scheduler), callbacks=[callback] if callback else [],
        compute_loss_func=compute_loss_func,
    )  # fmt: skip
    if follows:
        callback.follow(trainer)
    trainer.train(resume_from_checkpoint=resume)
    assert "compute_loss" not in vars(trainer)
    return model, optimizer


def callback(**options):
    return GFShadowTrainerCallback(**{"on_error": "raise", "probes": ()} | options)


def all_text():
    rows = windows()
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


@pytest.mark.parametrize("mode", ["batch", "reference"])
@pytest.mark.parametrize(
    "options",
    [dict(), dict(gradient_accumulation_steps=2), dict(max_grad_norm=0.5), dict(dropout=0.1)],
    ids=["plain", "accumulation", "clipping", "dropout"],
)
def test_training_is_bit_identical(tmp_path, mode, options):
    bare = trained(tmp_path / "a", **options)
    ours = callback(data=all_text() if mode == "reference" else None)
    assert_identical(fingerprint(*bare), fingerprint(*trained(tmp_path / "b", ours, **options)))
    steps = 4 if "gradient_accumulation_steps" in options else 8
    assert [r.step for r in ours.shadow.records] == list(range(steps + 1))
    assert ours.shadow.records[-1].discrepancy is not None
    assert ours.shadow.records[-1].mode == mode


@pytest.mark.parametrize(("accumulation", "audit"), [(1, "match"), (2, "scaled 2")])
def test_the_audit_sees_the_gradient_the_trainer_uses(tmp_path, accumulation, audit):
    # each loss is divided by the labels of all batches of the step: the step uses their sum
    ours = callback()
    trained(tmp_path, ours, gradient_accumulation_steps=accumulation)
    assert {r.audit for r in ours.shadow.records} - {"pending"} == {audit}
    assert ours.shadow.records[-1].solver_error < ours.shadow.records[-1].discrepancy


def test_clipping_is_seen_as_scaling(tmp_path):
    ours = callback()
    trained(tmp_path, ours, max_grad_norm=0.05)
    assert {r.audit.split()[0] for r in ours.shadow.records} - {"pending"} == {"scaled"}


def test_reference_is_that_of_a_plain_loop(tmp_path):
    ours = callback(data=all_text())
    trained(tmp_path, ours, epochs=5, per_device_train_batch_size=SAMPLES)
    # one batch an epoch, of all samples: only the order within it differs
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    with gfs.attach(optimizer, model, own_loss, data=all_text(), probes=()) as shadow:
        for _ in range(5):
            optimizer.zero_grad()
            own_loss(model, all_text()).backward()
            optimizer.step()
            scheduler.step()
    for a, b in zip(ours.shadow.records, shadow.records, strict=True):
        assert a.time == pytest.approx(b.time)
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
    last, there = ours.shadow.records[-1], shadow.records[-1]
    assert last.discrepancy == pytest.approx(
        there.discrepancy, abs=last.solver_error + there.solver_error
    )


def test_the_trainers_other_normalisation_is_seen(tmp_path, monkeypatch):
    counted = [{**row, "labels": row["input_ids"]} for row in windows()]
    monkeypatch.setitem(globals(), "windows", lambda: counted)
    ours = callback(data=all_text())
    trained(tmp_path, ours, per_device_train_batch_size=SAMPLES)
    assert ours.shadow.records[-1].audit == "scaled 0.9167"


def test_a_run_resumed_from_a_checkpoint_goes_on(tmp_path):
    whole = callback()
    trained(tmp_path / "whole", whole, save_strategy="steps", save_steps=4)
    assert (tmp_path / "whole" / "checkpoint-4" / "gfshadow.pt").is_file()
    again = callback()
    trained(tmp_path / "whole", again, resume=str(tmp_path / "whole" / "checkpoint-4"))
    assert [r.step for r in again.shadow.records] == list(range(9))
    for a, b in zip(whole.shadow.records, again.shadow.records, strict=True):
        assert a.discrepancy == b.discrepancy, a.step


class Weighted(transformers.Trainer):
    """A loss of one's own, as people write it: the labels never reach the model."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits, labels = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        weight = torch.linspace(0.5, 1.5, logits.shape[1])
        loss = torch.nn.functional.cross_entropy(logits, labels, weight)
        return (loss, outputs) if return_outputs else loss


def unscaled(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits[:, -1], labels[:, -1])


@pytest.mark.parametrize("mode", ["batch", "reference"])
@pytest.mark.parametrize(
    "options",
    [
        dict(label_smoothing_factor=0.1),
        dict(compute_loss_func=unscaled),
        dict(cls=Weighted),
        dict(cls=Weighted, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=1),
    ],
    ids=["smoothing", "function", "subclass", "accumulation"],
)
def test_the_trainers_own_loss_is_followed(tmp_path, options, mode):
    if mode == "reference":
        options = options | {"per_device_train_batch_size": SAMPLES}
        options.pop("gradient_accumulation_steps", None)
    bare = trained(tmp_path, **options)
    ours = callback(data=all_text() if mode == "reference" else None)
    shadowed = trained(tmp_path, ours, follows=True, **options)
    assert_identical(fingerprint(*bare), fingerprint(*shadowed))
    last = ours.shadow.records[-1]
    assert last.mode == mode
    # this trainer divides by the step's labels, Weighted by each batch's: the step uses the sum
    assert last.audit == ("scaled 2" if "gradient_accumulation_steps" in options else "match")
    assert last.discrepancy > last.solver_error


@pytest.mark.parametrize(
    ("options", "trainer", "error", "message"),
    [
        ({}, "mine", TypeError, r"^trainer must be a transformers.Trainer, got a str\."),
        (
            {"objective": own_loss},
            Weighted.__new__(Weighted),
            ValueError,
            r"^objective must be the trainer's or yours, got <function own_loss",
        ),
    ],
    ids=["no trainer", "two objectives"],
)
def test_what_cannot_be_followed(options, trainer, error, message):
    with pytest.raises(error, match=message):
        callback(**options).follow(trainer)


def test_a_batch_without_labels_is_named():
    with pytest.raises(ValueError, match="model must be one that returns its loss"):
        own_loss(gpt2(), {"input_ids": windows()[0]["input_ids"][None]})


def test_nothing_is_left_on_the_model(tmp_path):
    model, optimizer = trained(tmp_path, callback())
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks


# ---- Accelerate -----------------------------------------------------------------------------


def accelerated(attach_when=None, accumulation=1, mode="reference", **options):
    """Accelerate's own loop; the shadow is attached before or after prepare()."""
    torch.manual_seed(4)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader = torch.utils.data.DataLoader(windows(), batch_size=4, shuffle=True)
    options = {"probes": (), "on_error": "raise"} | options
    data = all_text() if mode == "reference" else None
    shadow = None
    if attach_when == "before":
        shadow = gfs.attach(optimizer, model, own_loss, data=data, **options)
    prepared, steps, batches = accelerator.prepare(model, optimizer, loader)
    if attach_when == "after":
        shadow = gfs.attach(steps, prepared, own_loss, data=data, **options)
    for _ in range(2):
        for batch in batches if shadow is None or data is not None else shadow.watch(batches):
            with accelerator.accumulate(prepared):
                accelerator.backward(own_loss(prepared, batch))
                steps.step()
                steps.zero_grad()
    if shadow is not None:
        shadow.detach()
    return fingerprint(model, optimizer), shadow


@pytest.mark.parametrize("mode", ["batch", "reference"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_accelerate(when, accumulation, mode):
    bare, _ = accelerated(accumulation=accumulation)
    ours, shadow = accelerated(when, accumulation, mode)
    assert_identical(bare, ours)
    assert [r.step for r in shadow.records] == list(range(8 // accumulation + 1))
    assert shadow.records[-1].discrepancy is not None
    assert shadow.records[-1].mode == mode
    if mode == "batch":
        assert {r.audit for r in shadow.records} - {"pending"} == {"match"}
