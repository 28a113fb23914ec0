"""Specs: what a registry hook yields."""

import dataclasses

import pytest

from torch_gfshadow import specs
from torch_gfshadow.specs import BoundSpec, LoggerSpec, Spec

FAMILIES = [
    specs.BoundSpec,
    specs.InitSpec,
    specs.LoggerSpec,
    specs.ProbeSpec,
    specs.FlowSpec,
    specs.SolverSpec,
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spec_is_frozen_and_names_its_parts(family):
    spec = family(name="a", factory=list, summary="makes a list", source="here")
    assert (spec.name, spec.factory, spec.summary, spec.source) == (
        "a",
        list,
        "makes a list",
        "here",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "b"


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_a_spec_and_no_other_family(family):
    spec = family(name="a", factory=list, summary="")
    assert [other for other in FAMILIES if isinstance(spec, other)] == [family]
    assert isinstance(spec, Spec)


def test_specs_of_different_families_are_not_equal():
    shared = {"name": "a", "factory": list, "summary": ""}
    assert BoundSpec(**shared) != LoggerSpec(**shared)
    assert BoundSpec(**shared) == BoundSpec(**shared)


@pytest.mark.parametrize("name", ["theorem2", "scaled_xavier", "rkc-2", "A"])
def test_a_name_of_letters_digits_dash_and_underscore_is_taken(name):
    assert Spec(name=name, factory=list, summary="").name == name


@pytest.mark.parametrize("name", ["", "a:b", "a b", "a.b", "-", "_", "a\n"])
def test_a_name_that_cannot_stand_in_attach_is_refused(name):
    with pytest.raises(ValueError, match="name must be letters, digits, '-' and '_', got"):
        Spec(name=name, factory=list, summary="")


def test_a_factory_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="factory must be callable, got 3"):
        Spec(name="a", factory=3, summary="")
