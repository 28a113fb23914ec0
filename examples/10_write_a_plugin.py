"""A plugin in one file: a probe, and a listener that hears of every record.

The probe measures the curvature along the gradient, gᵀHg / gᵀg, for one Hessian product. It must
lie between λ_min and λ_max, and training must be bit-identical beside it: both are checked.
"""

import torch
from matplotlib.figure import Figure

import torch_gfshadow as gfs
from torch_gfshadow.specs import ProbeSpec
from torch_gfshadow.testing import assert_inert, assert_probe_contract


# --8<-- [start:probe]
class AlongGradient:
    """gᵀHg / gᵀg: the curvature that one step of gradient descent feels."""

    name, every = "along_gradient", None

    def measure(self, point):
        g = point.hessian.grad
        return {"value": float(g @ point.hessian(g) / (g @ g))}


# --8<-- [end:probe]
# --8<-- [start:plugin]
class Plugin:
    """In a package this is the module that the entry point names."""

    def __init__(self):
        self.largest = None

    @gfs.hookimpl
    def gfshadow_probes(self):
        summary = "curvature along the gradient"
        return [ProbeSpec(name="along_gradient", factory=AlongGradient, summary=summary)]

    @gfs.hookimpl
    def gfshadow_step(self, record):  # takes fewer arguments than the hook offers
        if self.largest is None or (record.discrepancy or 0.0) > self.largest.discrepancy:
            self.largest = record


# --8<-- [end:plugin]


def exact(hessian, theta):
    g = hessian @ theta
    return {"value": float(g @ hessian @ g / (g @ g))}


# --8<-- [start:check]
assert_probe_contract(AlongGradient, exact)  # against quadratics whose Hessian is known
assert_inert(Plugin(), probes=["along_gradient"], probe_every=1)
# --8<-- [end:check]

torch.manual_seed(0)
X = torch.randn(64, 6, dtype=torch.float64)
y = torch.sin(X.sum(1, keepdim=True))
model = torch.nn.Sequential(
    torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
).double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


def objective(model, batch):
    return torch.nn.functional.mse_loss(model(batch[0]), batch[1])


# --8<-- [start:use]
plugin = Plugin()
probes = ["lambda_min", "lambda_max", "along_gradient"]
shadow = gfs.attach(
    optimizer, model, objective, data=(X, y), plugins=[plugin], probes=probes, probe_every=20
)
# --8<-- [end:use]
for _ in range(200):
    optimizer.zero_grad()
    objective(model, (X, y)).backward()
    optimizer.step()
shadow.detach()

probed = [record for record in shadow.records if "along_gradient" in record.extras]
print("step     λ_min   gᵀHg/gᵀg     λ_max   discrepancy")
for r in probed[:: max(1, len(probed) // 6)]:
    value = r.extras["along_gradient"]["value"]
    inside = r.lambda_min - r.lambda_min_residual <= value <= r.lambda_max + r.lambda_max_residual
    numbers = f"{r.step:4d}  {r.lambda_min:8.4f}  {value:10.4f}  {r.lambda_max:8.4f}"
    print(f"{numbers}   {r.discrepancy:.2e} ± {r.solver_error:.0e}  {'' if inside else 'NO'}")
at = plugin.largest
print(
    f"largest: {at.discrepancy:.2e} ± {at.solver_error:.0e} at step {at.step}, heard by the plugin"
)

figure = Figure(figsize=(7.0, 3.6), layout="constrained")
axes = figure.add_subplot()
steps = [r.step for r in probed]
axes.fill_between(
    steps, [r.lambda_min for r in probed], [r.lambda_max for r in probed], color="#b9d7ea"
)
values = [r.extras["along_gradient"]["value"] for r in probed]
axes.plot(steps, values, "o-", color="#b5402a")
axes.set(
    xlabel="step",
    ylabel="curvature  [f/θ²]",
    title="Curvature along the gradient, between λ_min and λ_max",
)
figure.savefig("10_write_a_plugin.png", dpi=130)
