"""torch_gfshadow: the gradient flow beside your training loop, with error bars.

The picture::

    user's loop ──► torch optimizer (untouched) ──step hooks──► Tracker
                                                                │ measures before anything moves
      objective f(θ) ─► flow field −∇f ─► solver ─► Shadow θ̃(t_k) ± solver error
                    └─► Hessian products ─► probes λ_min, λ_max ± residual
                                                └─► bounds (the paper's theorems)
                                                           └─► Record ─► loggers

Source: Elkabetz & Cohen, "Continuous vs. Discrete Optimization of Deep Neural Networks",
NeurIPS 2021. (The shadow is not the shadowing lemma's.)
"""

from torch_gfshadow import bounds as bounds
from torch_gfshadow import flows as flows
from torch_gfshadow import inits as inits
from torch_gfshadow import loggers as loggers
from torch_gfshadow import optim as optim
from torch_gfshadow import probes as probes
from torch_gfshadow import solvers as solvers
from torch_gfshadow._purity import probing as probing
from torch_gfshadow.advice import step_size_advice as step_size_advice
from torch_gfshadow.alerts import Alerts as Alerts
from torch_gfshadow.attach import attach as attach
from torch_gfshadow.attach import get as get
from torch_gfshadow.attach import wrap as wrap
from torch_gfshadow.handle import Shadow as Shadow
from torch_gfshadow.hookspecs import hookimpl as hookimpl
from torch_gfshadow.record import Record as Record
from torch_gfshadow.shadowed import shadowed as shadowed
from torch_gfshadow.status import Status as Status

__version__ = "0.1.0"
