"""Hugging Face: GPT-2 (small, from a configuration) on real text, one callback.

pip install "torch-gfshadow[plot,transformers]"
python examples/08_huggingface.py
"""

import tempfile
from pydoc_data.topics import topics  # the manual that every Python ships

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.utils import logging

from torch_gfshadow.integrations.transformers import GFShadowTrainerCallback

LENGTH, SAMPLES = 32, 64


def main() -> None:
    """Train on bytes of text, print what the shadow saw, draw it."""
    logging.set_verbosity_error()
    text = "".join(topics[name] for name in sorted(topics)).encode()[: LENGTH * SAMPLES]
    windows = torch.tensor(list(text)).view(SAMPLES, LENGTH)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)

    callback = GFShadowTrainerCallback(every=4, probe_every=8)  # new
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=6, per_device_train_batch_size=8, use_cpu=True,
            report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
            max_grad_norm=1.0, seed=0,
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=48)
        data = [{"input_ids": window, "labels": window} for window in windows]
        Trainer(
            model, arguments, train_dataset=data, optimizers=(optimizer, schedule),
            callbacks=[callback],
        ).train()  # fmt: skip

    shadow = callback.shadow
    assert shadow is not None
    print("  step   loss   discrepancy from the same-batch flow    λ_max  audit")
    for record in shadow.records:
        bar = f"{record.discrepancy or 0.0:.1e} ± {record.solver_error or 0.0:.0e}"
        sharpness = f"{record.lambda_max:8.2f}" if record.lambda_max is not None else " " * 8
        loss = f"{record.loss:7.3f}" if record.loss is not None else " " * 7
        print(f"{record.step:6d} {loss}   {bar:36s} {sharpness}  {record.audit}")
    shadow.plot("08_huggingface.png")


if __name__ == "__main__":
    main()
