"""The Lightning callback against the real trainer: same bits, right numbers, resumed runs."""

from __future__ import annotations

import warnings

import pytest
import torch
from loops import assert_identical, fingerprint, same
from torch import nn

L = pytest.importorskip("lightning.pytorch")

from torchmetrics import MeanSquaredError  # noqa: E402

from torch_gfshadow.integrations.lightning import GFShadowCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]

N, IN, OUT = 32, 6, 3


def images():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, IN, generator=generator)
    return torch.utils.data.TensorDataset(x, torch.sin(x[:, :OUT]))


class Net(L.LightningModule):
    def __init__(self, momentum=0.0, lr=0.05):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(IN, 8), nn.Tanh(), nn.Linear(8, OUT))
        self.options = dict(lr=lr, momentum=momentum)
        self.outputs, self.error = [], MeanSquaredError()

    def forward(self, x):
        return self.body(x)

    def loss(self, batch):
        return 0.5 * (self(batch[0]) - batch[1]).square().sum(1).mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss)
        self.log_dict({"twice": 2 * loss})
        self.outputs.append(loss.detach())
        self.error.update(self(batch[0]), batch[1])  # adds to its sums in place
        return {"loss": loss}

    def on_train_epoch_end(self):
        self.log("mean", torch.stack(self.outputs).mean())
        self.log("error", self.error.compute())
        self.outputs.clear()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), **self.options)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
        }


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        optimizer.step()
        self.outputs.append(loss.detach())
        self.error.update(self(batch[0]), batch[1])


def own(module, batch):
    loss = module.loss(batch)
    module.log("not of the run", loss)
    return loss


class Keeper(L.loggers.logger.Logger):
    """A logger of Lightning's that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name = version = "keeper"

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


def trained(callback=None, net=Net, epochs=2, shuffle=True, resume=None, batch_size=8, **options):
    L.seed_everything(3, verbose=False)
    module = net()
    loader = torch.utils.data.DataLoader(images(), batch_size, shuffle=shuffle)
    keeper = options.pop("logger", Keeper())
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=keeper,
        callbacks=[callback] if callback else [],
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        **{"enable_checkpointing": False} | options,
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True if resume else None)
    return module, trainer


def callback(**options):
    return GFShadowCallback(**{"on_error": "raise", "probes": ()} | options)


LOOPS = {
    "automatic": dict(),
    "accumulation": dict(accumulate_grad_batches=2),
    "clipping": dict(gradient_clip_val=0.05),
    "bf16": dict(precision="bf16-mixed"),
    "manual": dict(net=Manual),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("mode", ["batch", "reference"])
def test_training_and_its_metrics_are_bit_identical(loop, mode):
    options = LOOPS[loop]
    bare, there = trained(**options)
    ours = callback(
        objective=own if loop == "manual" else None,
        data="train" if mode == "reference" else None,
        log=False,
    )
    module, trainer = trained(ours, **options)
    assert_identical(fingerprint(bare, *there.optimizers), fingerprint(module, *trainer.optimizers))
    steps = 4 if loop == "accumulation" else 8
    assert [r.step for r in ours.shadow.records] == list(range(steps + 1))
    assert ours.shadow.records[-1].discrepancy is not None
    assert ours.shadow.records[-1].mode == mode
    for (_, a), (_, b) in zip(there.loggers[0].rows, trainer.loggers[0].rows, strict=True):
        assert a.keys() == b.keys()
        assert all(same(a[k], b[k]) for k in a)


@pytest.mark.parametrize("loop", ["automatic", "accumulation", "clipping", "bf16", "manual"])
def test_the_audit_sees_the_gradient_lightning_uses(loop):
    ours = callback(objective=own if loop == "manual" else None)
    trained(ours, **LOOPS[loop])
    audits = {r.audit.split()[0] for r in ours.shadow.records} - {"pending"}
    assert audits <= ({"scaled", "match"} if loop == "clipping" else {"match"})
    assert ("scaled" in audits) == (loop == "clipping")


def test_full_batch_reference_is_that_of_the_plain_loop():
    import torch_gfshadow as gfs

    ours = callback(data=images()[:])
    trained(ours, epochs=6, shuffle=False, batch_size=N)
    L.seed_everything(3, verbose=False)
    module = Net()
    settings = module.configure_optimizers()
    optimizer, scheduler = settings["optimizer"], settings["lr_scheduler"]
    with gfs.attach(
        optimizer, module, own, data=images()[:], probes=(), on_error="raise"
    ) as shadow:
        for _ in range(6):
            optimizer.zero_grad()
            own(module, images()[:]).backward()
            optimizer.step()
            scheduler.step()
    for a, b in zip(ours.shadow.records, shadow.records, strict=True):
        assert (a.step, a.time, a.discrepancy) == (b.step, b.time, b.discrepancy)


def test_discrepancy_goes_to_the_trainers_loggers():
    keeper = Keeper()
    ours = callback()
    trained(ours, logger=keeper)
    logged = [(s, m["gfshadow/discrepancy"]) for s, m in keeper.rows if "gfshadow/discrepancy" in m]
    assert logged == [(r.step, r.discrepancy) for r in ours.shadow.records[1:]]


def test_a_run_resumed_from_lightnings_checkpoint_gives_the_same_records(tmp_path):
    whole = callback()
    trained(whole, epochs=3)
    first = callback()
    _, trainer = trained(first, epochs=2, enable_checkpointing=True, default_root_dir=tmp_path)
    path = tmp_path / "at.ckpt"
    trainer.save_checkpoint(path)
    # the shuffle of epoch 3 is drawn from the stream as epoch 2 left it
    second = callback()
    state = torch.get_rng_state()

    class Restored(L.Callback):
        def on_train_epoch_start(self, *_):
            torch.set_rng_state(state)

    L.seed_everything(3, verbose=False)
    module = Net()
    again = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=Keeper(), callbacks=[second, Restored()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(images(), 8, shuffle=True)
    again.fit(module, loader, ckpt_path=path, weights_only=True)
    assert [r.step for r in second.shadow.records] == list(range(13))
    for a, b in zip(whole.shadow.records[:9], second.shadow.records[:9], strict=True):
        assert a.discrepancy == b.discrepancy


def test_a_checkpoint_of_another_shadow_starts_a_new_one_with_a_warning(tmp_path):
    first = callback(log=False)
    _, trainer = trained(first, epochs=1, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.save_checkpoint(tmp_path / "at.ckpt")
    other = GFShadowCallback(data="train", probes=(), log=False)
    with pytest.warns(RuntimeWarning, match="starts a new shadow here"):
        trained(other, resume=tmp_path / "at.ckpt", epochs=2)
    assert other.shadow.records[-1].discrepancy is not None


def test_an_exception_in_training_leaves_the_records():
    class Broken(Net):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.global_step == 3:
                raise RuntimeError("the disk is on fire")

    ours = callback()
    with pytest.raises(RuntimeError, match="on fire"):
        trained(ours, net=Broken)
    assert ours.shadow.records[-1].step == 3
    assert "attached" not in repr(ours.shadow)


@pytest.mark.parametrize(
    ("options", "net", "message"),
    [
        (dict(), Manual, "objective must be given under manual optimization"),
        (dict(optimizer=1), Net, "optimizer must be the number of one, got 1"),
        (dict(data="validation"), Net, "data must be data or 'train', got 'validation'"),
    ],
)
def test_what_cannot_be_followed_is_said_when_training_starts(options, net, message):
    with pytest.raises(ValueError, match=message):
        trained(callback(**options), net=net)


def test_a_step_without_loss_is_named():
    class Lossless(Net):
        def training_step(self, batch, batch_idx):
            return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="training_step must be returning a loss"):
            trained(callback(data="train"), net=Lossless)
