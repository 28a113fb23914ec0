"""Small models, each with one trap for whoever evaluates it at other parameters."""

from __future__ import annotations

import warnings
from collections import OrderedDict

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from torch_gfshadow._tree import Layout

N, IN, OUT = 12, 5, 3


def layout_of(model, params=None):
    """Lay out ``params`` of ``model`` (by default all that require gradients), each once."""
    wanted = {id(p) for p in (params or [p for p in model.parameters() if p.requires_grad])}
    named = [(name, p) for name, p in model.named_parameters() if id(p) in wanted]
    return Layout([name for name, _ in named], [p for _, p in named])


def squared(model, batch):
    x, y = batch
    return 0.5 * ((model(x) - y) ** 2).sum(-1).mean()


def mlp():
    return nn.Sequential(nn.Linear(IN, 4), nn.Tanh(), nn.Linear(4, OUT))


def relu_mlp():
    return nn.Sequential(nn.Linear(IN, 8), nn.ReLU(), nn.Linear(8, OUT))


def batchnorm():
    return nn.Sequential(nn.Linear(IN, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, OUT))


def batchnorm_eval():
    model = batchnorm()
    model(torch.randn(64, IN, dtype=next(model.parameters()).dtype))
    return model.eval()


def dropout():
    return nn.Sequential(nn.Linear(IN, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, OUT))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(IN, 4, bias=False)
        self.decode = nn.Linear(4, IN, bias=False)
        self.decode.weight = nn.Parameter(self.encode.weight.t().contiguous())
        self.again = nn.Linear(4, IN, bias=False)
        self.again.weight = self.decode.weight
        self.out = nn.Linear(IN, OUT)

    def forward(self, x):
        h = torch.tanh(self.decode(self.encode(x)))
        return self.out(torch.tanh(self.again(self.encode(h))))


def frozen():
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def weight_norm_legacy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = nn.utils.weight_norm(nn.Linear(IN, 4))
    return nn.Sequential(first, nn.Tanh(), nn.Linear(4, OUT))


def weight_norm():
    first = nn.utils.parametrizations.weight_norm(nn.Linear(IN, 4))
    return nn.Sequential(first, nn.Tanh(), nn.Linear(4, OUT))


def spectral_norm_legacy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = nn.utils.spectral_norm(nn.Linear(IN, 4))
    return nn.Sequential(first, nn.Tanh(), nn.Linear(4, OUT))


def spectral_norm():
    first = nn.utils.parametrizations.spectral_norm(nn.Linear(IN, 4))
    return nn.Sequential(first, nn.Tanh(), nn.Linear(4, OUT))


class Checkpointed(nn.Module):
    def __init__(self, reentrant=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(IN, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 4))
        self.head = nn.Linear(4, OUT)
        self.reentrant = reentrant

    def forward(self, x):
        if self.reentrant:
            x = x.detach().requires_grad_()
        return self.head(torch.tanh(checkpoint(self.body, x, use_reentrant=self.reentrant)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(IN, 3, num_layers=2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(3, OUT)

    def forward(self, x):
        return self.head(self.lstm(x.unsqueeze(1).repeat(1, 3, 1))[0][:, -1])


class Transformer(nn.Module):
    def __init__(self, dropout=0.1):
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 8, dropout=dropout, batch_first=True), 1
        )
        self.head = nn.Linear(4, OUT)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.unsqueeze(-1))).mean(1))


class Attention(nn.Module):
    """Calls the fused attention kernel by itself."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(1, 6)
        self.head = nn.Linear(2, OUT)

    def forward(self, x):
        q, k, v = self.qkv(x.unsqueeze(-1)).unsqueeze(1).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4, sparse=True)
        self.head = nn.Linear(4, OUT)

    def forward(self, x):
        return self.head(torch.tanh(self.table(words_of(x))).mean(1))


def words_of(x):
    """Return indices of a table of 7 rows, some of them 0."""
    return (x.detach().abs() * 3).long().clamp(max=6)


class Padded(nn.Module):
    """A table whose row 0 is looked up but gets no gradient."""

    def __init__(self, tied=False):
        super().__init__()
        self.table = nn.Embedding(7, 4, padding_idx=0)
        with torch.no_grad():
            self.table.weight.normal_()  # a padding row of zeros would hide what it does
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, OUT)
        self.tied = tied

    def forward(self, x):
        h = torch.tanh(self.mix(self.table(words_of(x)))).mean(1)
        return self.head(
            torch.tanh(h @ self.table.weight.T) @ self.table.weight if self.tied else h
        )


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 3, batch_first=True, bidirectional=True)
        self.head = nn.Linear(6, OUT)

    def forward(self, x):
        lengths = torch.arange(len(x)) % IN + 1
        pack, unpack = nn.utils.rnn.pack_padded_sequence, nn.utils.rnn.pad_packed_sequence
        packed = pack(x.unsqueeze(-1), lengths, batch_first=True, enforce_sorted=False)
        return self.head(unpack(self.gru(packed)[0], batch_first=True)[0].sum(1))


class Once(torch.autograd.Function):
    """A backward pass that cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class WithContext(torch.autograd.Function):
    """The new style of autograd.Function, with a derivative of the backward pass by hand."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Between(nn.Module):
    """Any function between two linear layers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.head = nn.Linear(IN, 4), nn.Linear(4, OUT)
        self.function = function

    def forward(self, x):
        return self.head(self.function(self.first(x)))


class Scattered(nn.Module):
    """Message passing on a fixed graph over the samples."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(IN, 4), nn.Linear(4, OUT)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        i = torch.arange(len(h))
        to = (i * 5 + 1) % len(h)
        summed = torch.zeros_like(h).index_add(0, to, h)
        there = torch.zeros_like(h).scatter(0, to[:, None].expand(-1, 4), h)
        return self.head(summed * there + h)


def solved(h):
    """Run a few routines of torch.linalg on matrices made of ``h``."""
    a = h.unsqueeze(-1) * h.unsqueeze(-2) + torch.eye(4, dtype=h.dtype)
    low = torch.linalg.cholesky(a)
    return torch.linalg.solve(a, h) + low.sum(-1) + torch.linalg.matrix_exp(-a).sum(-1)


def filtered(h):
    return torch.fft.irfft(torch.fft.rfft(h.tanh(), dim=-1).cumsum(-1), n=4)


class Instance(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 3)
        self.norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
        self.head = nn.Linear(9, OUT)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x.unsqueeze(1)))).flatten(1))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 3)
        self.norm = nn.GroupNorm(1, 3)
        self.head = nn.Linear(3, OUT)

    def forward(self, x):
        return self.head(nn.functional.gelu(self.norm(self.conv(x.unsqueeze(1)))).mean(-1))


class OwnFunction(torch.autograd.Function):
    """The old style of autograd.Function, which torch.func refuses."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Legacy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(IN, 4), nn.Linear(4, OUT)

    def forward(self, x):
        return self.head(OwnFunction.apply(self.first(x)))


class Float32Only(nn.Module):
    """Cannot be evaluated in float64: a constant of the wrong precision sits in its forward."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(IN, 4), nn.Linear(4, OUT)
        self.scale = [torch.eye(4)]

    def forward(self, x):
        return self.head(torch.tanh(self.first(x) @ self.scale[0]))


ZOO = OrderedDict(
    mlp=mlp,
    relu=relu_mlp,
    batchnorm=batchnorm,
    batchnorm_eval=batchnorm_eval,
    dropout=dropout,
    tied=Tied,
    frozen=frozen,
    weight_norm_legacy=weight_norm_legacy,
    weight_norm=weight_norm,
    spectral_norm_legacy=spectral_norm_legacy,
    spectral_norm=spectral_norm,
    checkpointed=Checkpointed,
    checkpointed_reentrant=lambda: Checkpointed(reentrant=True),
    lstm=Recurrent,
    transformer=Transformer,
    transformer_eval=lambda: Transformer().eval(),
    attention=Attention,
    sparse=Sparse,
    convolutional=Convolutional,
    legacy_function=Legacy,
    padded=Padded,
    packed=Packed,
    once_differentiable=lambda: Between(Once.apply),
    setup_context=lambda: Between(WithContext.apply),
    gumbel=lambda: Between(nn.functional.gumbel_softmax),
    rrelu=lambda: Between(nn.RReLU()),
    scattered=Scattered,
    linalg=lambda: Between(solved),
    fft=lambda: Between(filtered),
    instancenorm=Instance,
    batchnorm_cumulative=lambda: Between(nn.BatchNorm1d(4, momentum=None)),
)


def straight_through(h):
    return h + (h.sign() - h).detach()


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


class Distilled(nn.Module):
    """Self-distillation with a stopped gradient, as SimSiam's."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(IN, OUT), nn.Linear(OUT, OUT)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.head(h) - torch.tanh(self.first(1.5 * x)).detach()


NOT_A_GRADIENT = OrderedDict(
    straight_through=lambda: Between(lambda h: torch.tanh(straight_through(h) + h)),
    reversed=lambda: Between(lambda h: torch.tanh(h) + Reverse.apply(h).sin()),
    stopped=Distilled,
    padded_tied=lambda: Padded(tied=True),
)
"""Models whose backward pass computes a field that is not the gradient of any function."""


def make(name, dtype=torch.float64, n=N):
    """Return (model, batch) of the zoo, made from a fixed seed, off its initial point."""
    torch.manual_seed(3)
    model = ZOO[name]().to(dtype)
    x = torch.randn(n, IN, dtype=dtype)
    y = torch.randn(n, OUT, dtype=dtype)
    return model, (x, y)
