"""The hook with real models of the transformers library, built from configurations."""

import gfshadow_transformers
import pytest
import torch
from gfshadow_transformers import gfshadow_objective_for, own_loss
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

import torch_gfshadow as gfs
from torch_gfshadow.testing import assert_hooks_valid, isolated_plugins

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


def bert():
    config = BertConfig(vocab_size=40, num_hidden_layers=1, num_labels=3, **SMALL)
    return BertForSequenceClassification(config)


def gpt2():
    config = GPT2Config(vocab_size=40, n_layer=1, n_head=2, n_embd=16, n_positions=16)
    return GPT2LMHeadModel(config)


def batch_of(kind, size=6):
    ids = torch.randint(1, 40, (size, 8))
    labels = ids if kind is gpt2 else torch.randint(0, 3, (size,))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_its_hooks_are_valid():
    assert_hooks_valid(gfshadow_transformers)


@pytest.mark.parametrize("kind", [bert, gpt2])
def test_a_model_is_followed_without_an_objective(kind):
    model, batch = kind().eval(), batch_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with isolated_plugins():
        shadow = gfs.attach(
            optimizer, model, data=batch, plugins=[gfshadow_transformers], on_error="raise"
        )
    for _ in range(4):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    shadow.detach()
    last = shadow.records[-1]
    assert (last.audit, last.mode) == ("match", "reference")
    assert 0.0 < last.solver_error < last.discrepancy
    assert last.lambda_max > 0.0
    assert shadow.records[0].loss == pytest.approx(
        float(own_loss(kind_at_start(kind), batch).detach()), rel=1e-5
    )


def kind_at_start(kind):
    torch.manual_seed(0)
    return kind().eval()


def test_a_compiled_or_wrapped_model_is_looked_through():
    model = bert()
    wrapped = torch.nn.Module()
    wrapped.module = model
    assert gfshadow_objective_for(None, wrapped, {}) is own_loss


def test_other_models_are_passed_on():
    assert gfshadow_objective_for(None, torch.nn.Linear(1, 1), {}) is None


def test_without_labels_the_message_says_so():
    batch = batch_of(bert)
    del batch["labels"]
    with pytest.raises(ValueError, match="batch must be one with labels, got the keys input_ids"):
        own_loss(bert(), batch)
    with pytest.raises(TypeError, match="batch must be a mapping of the model's arguments, got a "):
        own_loss(bert(), (1, 2))
