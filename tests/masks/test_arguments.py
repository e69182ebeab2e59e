"""What a user may give to `trace` by mistake, and the sentence that says what to do."""

import functools

import equinox
import flax.linen as nn
import haiku
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import maskprune.linen
import maskprune.nnx
from maskprune import compact, cost, init_network, trace


X = jnp.ones((2, 3))
PARAMS = {"a": jnp.ones((3, 4)), "z": jnp.ones((4, 2))}


def apply(p, x):
    return jax.nn.relu(x @ p["a"]) @ p["z"]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))


class Nnx(nnx.Module):
    def __init__(self):
        self.dense, self.norm = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(self.dense(x))

    def encode(self, x):
        return self.dense(x)


class Equinox(equinox.Module):
    dense: equinox.nn.Linear

    def encode(self, x):
        return self.dense(x)


def equinox_module():
    return Equinox(equinox.nn.Linear(3, 4, key=jax.random.key(0)))


MODULES = {
    "linen": (Linen, r"the Linen module `Linen`.*maskprune.linen.from_module"),
    "linen method": (lambda: Linen().__call__, r"the method `__call__` of the Linen module `Linen`.*from_module"),
    "linen apply": (lambda: Linen().apply, r"takes all variables, not `params` alone: .*maskprune.linen.from_module"),
    "a class": (lambda: Linen, r"the Linen module `Linen`.*from_module"),
    "nnx": (Nnx, r"the NNX module `Nnx`.*maskprune.nnx.from_module"),
    "nnx method": (lambda: Nnx().encode, r"the method `encode` of the NNX module `Nnx`.*from_module"),
    "nnx compiled": (lambda: jax.jit(Nnx()), r"the NNX module `Nnx`"),
    "equinox": (lambda: equinox_module().dense, r"the Equinox module `Linear`.*equinox.partition"),
    "equinox method": (lambda: equinox_module().encode, r"the method `encode` of the Equinox module `Equinox`"),
    "equinox mapped": (lambda: jax.vmap(equinox_module().dense), r"the Equinox module `Linear`"),
    "partly given": (lambda: functools.partial(Nnx().encode), r"the method `encode` of the NNX module"),
    "haiku": (lambda: haiku.transform(lambda x: haiku.Linear(2)(x)), r"the Haiku network `Transformed`.*net.apply"),
    "haiku with a state": (lambda: haiku.transform_with_state(lambda x: x), r"`TransformedWithState`.*net.apply"),
}


@pytest.mark.parametrize(("make", "words"), MODULES.values(), ids=MODULES.keys())
def test_a_module_in_the_place_of_a_function(make, words):
    module = make()
    with pytest.raises(TypeError, match=f"`apply` is .*{words}" if "takes" not in words else words):
        trace(module, PARAMS, X)
    if callable(module):  # else it is no function for `cost` in the first place
        with pytest.raises(TypeError, match=words):
            cost(module, PARAMS, X)


def test_a_module_among_further_functions():
    with pytest.raises(TypeError, match=r"`also\[0\]` is the NNX module `Nnx`"):
        trace(apply, PARAMS, X, also=[(Nnx(), (X,))])


def test_functions_that_hold_a_module_are_functions():
    module, free = equinox_module(), equinox.nn.Lambda(jax.nn.relu)
    params, static = equinox.partition(module, equinox.is_inexact_array)
    run = jax.jit(lambda p, x: free(equinox.combine(p, static).encode(x)) @ jnp.ones((4, 2)))
    assert trace(run, params, X[0]).names == ("dense",)
    linen = Linen()
    variables = linen.init(jax.random.key(0), X)
    assert "params/Dense_0/kernel[1]" in trace(linen.apply, variables, X).refused


def nnx_parts():
    return maskprune.nnx.from_module(Nnx())


def linen_parts():
    module = Linen()
    return maskprune.linen.from_module(module, module.init(jax.random.key(0), X))


@pytest.mark.parametrize("parts", [nnx_parts, linen_parts])
def test_a_forgotten_state(parts):
    run, params, state = parts()
    with pytest.raises(TypeError, match=r"The model state is missing.*`model_state=model_state`"):
        trace(run, params, X)
    network = init_network(params, trace(run, params, X, model_state=state))
    with pytest.raises(TypeError, match="The model state is missing"):
        compact(run, network, X)


def test_a_state_and_parameters_that_are_swapped():
    run, params, state = nnx_parts()
    with pytest.raises(TypeError, match="`params` and the model state are swapped"):
        trace(run, state, X, model_state=params)


STATES = {
    "too few": (lambda p, model_state, x: x @ p["a"] + model_state["m"], "missing a required argument: 'x'"),
    "taken for one": (lambda p, batch_stats, *x: x[0] @ p["a"] + batch_stats["m"], "`apply` fails on `params`"),
}


@pytest.mark.parametrize(("function", "words"), STATES.values(), ids=STATES.keys())
def test_a_forgotten_state_of_a_function(function, words):
    with pytest.raises(TypeError, match=f"{words}.*its second parameter is .*give the state as `model_state=`"):
        trace(function, PARAMS, X)


def test_too_few_and_too_many_inputs():
    with pytest.raises(TypeError, match=r"`apply\(p, x\)` is called with `params`: missing a required argument: 'x'"):
        trace(apply, PARAMS)
    with pytest.raises(TypeError, match=r"is called with `params`, an input, an input: too many positional"):
        trace(apply, PARAMS, X, X)


def test_an_error_of_the_function_itself_passes_through():
    with pytest.raises(KeyError, match="kernel"):
        trace(lambda p, x: x @ p["kernel"], PARAMS, X)


def test_swapped_arguments():
    with pytest.raises(ValueError, match=r"`params` is one array and argument 1 a dict of 2 arrays"):
        trace(lambda x, p: apply(p, x), X, PARAMS)
    with pytest.raises(TypeError, match="`apply` is a dict: it and `params` are swapped"):
        trace(PARAMS, apply, X)
    assert trace(lambda p, x: jax.nn.relu(x @ p).sum(1), PARAMS["a"], X).names == ("",)


@pytest.mark.parametrize("wrong", [None, "apply", 3, X])
def test_what_is_no_function(wrong):
    with pytest.raises(TypeError, match=r"`apply` is .*: use a function of the parameters"):
        trace(wrong, PARAMS, X)
