"""Checks for a selector that somebody else wrote: every promise the search relies on, tried on awkward networks.

For the test suite of whoever writes a selector; needs no test framework. Knows selectors by their signature only, never
what one is meant to prefer, and trains nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import strict
from maskprune.masks.alterations import disable, freeze, zero_weights
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import Network, choose, entries, init_network
from maskprune.select.base import Scores, Selector
from maskprune.tasks.models.fcn import fcn


@strict
def check_selector(
    selector: Selector, *, batch: Any = None, network: Network | None = None, compiled: bool = True
) -> None:
    """Checks that a selector keeps what `minimize` expects of it.

    Its parameters are `(key, network, batch)`; it scores every group with one floating-point number a mask, finite
    where the mask is enabled; the same arguments give the same scores; it runs under `jax.jit`; it leaves the network
    as it was; and what disabled masks have stored makes no difference to the others.

    Args:
        selector: What to check.
        batch: Passed on to the selector: a pytree of arrays, or None.
        network: A network that the selector understands, by default `sample_network()`. It is tried in all
            `awkward_forms`.
        compiled: Whether it must run under `jax.jit`. False for a selector that works on the host, such as `probe`.

    Raises:
        AssertionError: A promise is broken; the message says which, and on which form of the network.

    Example:
        >>> from maskprune import select
        >>> check_selector(select.magnitude())
    """
    _check_parameters(selector)
    plain = sample_network() if network is None else network
    _check_call(selector, plain, batch)
    call = jax.jit(lambda key, network, batch: selector(key, network, batch)) if compiled else selector
    if compiled:
        _check_compiled(selector, call, plain, batch)
    for form, each in awkward_forms(plain).items():
        _check_form(call, each, batch, f"on a network with {form}")


def sample_network() -> Network:
    """A small network with two groups of convolutions, one of dense masks of unequal size, and one of a single mask.

    Its parameters are those of `models.fcn()`, under the same names, next to those of a dense layer of which some
    positions belong to no mask, and an integer leaf.
    """
    model, rng = fcn(), np.random.default_rng(7)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    convolutions = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    dense = {
        "in": {"kernel": rng.normal(size=(4, 6)), "bias": np.linspace(-0.1, 0.1, 6)},
        "out": {"kernel": rng.normal(size=(6, 3)), "calls": np.zeros((), np.int32)},
    }
    labels = (0, 0, 1, 2, 2, -1)
    own = (Slice("in/kernel", 1, labels, "out"), Slice("in/bias", 0, labels, "out"))
    wide = Group("wide", 3, (*own, Slice("out/kernel", 0, labels, "in")))
    lone = Group("lone", 1, (Slice("out/kernel", 1, (-1, 0, -1), "out"),))
    return init_network({**convolutions, **dense}, Groups((*model.groups, wide, lone)))


@strict
def awkward_forms(network: Network) -> dict[str, Network]:
    """The network with masks disabled, frozen, alike, or all zero: `{description: network}`."""
    every = {group.name: range(group.size) for group in network.groups}
    all_masks = choose(network, every)
    first = network.groups.names[0]
    alike = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1), network.params)
    return {
        "all masks enabled": network,
        "every second mask disabled": disable(network, choose(network, {g: n[1::2] for g, n in every.items()})),
        "one mask left in each group": disable(network, choose(network, {g: n[1:] for g, n in every.items()})),
        "the first group disabled": disable(network, choose(network, {first: every[first]})),
        "all masks frozen": freeze(network, all_masks),
        "all masks zero": zero_weights(network, all_masks, part="all"),
        "all masks alike": dataclasses.replace(network, params=alike),
    }


@strict
def poison(network: Network) -> Network:
    """The same network with NaN stored in every floating-point entry of its disabled masks; it computes the same."""
    off = {name: ~flags for name, flags in network.enabled.items()}
    marks = entries(network.groups, network.params, off, roles=("out", "in"))
    put = lambda leaf, gone: jnp.where(gone, jnp.nan, leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    return dataclasses.replace(network, params=jax.tree.map(put, network.params, marks))


def _check_parameters(selector: Selector) -> None:
    names = list(inspect.signature(selector).parameters)
    if names != ["key", "network", "batch"]:
        _fail(f"The selector's parameters are {', '.join(names)}: name them key, network, batch.")


def _check_call(selector: Selector, network: Network, batch: Any) -> None:
    """What can be seen without tracing: the same scores again, and an untouched network."""
    key, before = jax.random.key(3), _bits(network)
    scores = selector(key, network, batch)
    _check_scores(scores, network, "on a network with all masks enabled")
    _check_same(scores, selector(key, network, batch), network, "gives other scores for the same key", tolerance=0.0)
    if _bits(network) != before:
        _fail("The selector changed the network: return scores only.")


def _check_compiled(selector: Selector, compiled: Callable[..., Scores], network: Network, batch: Any) -> None:
    arguments = (jax.random.key(3), network, batch)
    traced = _run_compiled(compiled, arguments)
    _check_same(selector(*arguments), traced, network, "gives other scores under jax.jit", tolerance=1e-3)


def _check_form(call: Callable[..., Scores], network: Network, batch: Any, where: str) -> None:
    key = jax.random.key(4)
    scores, poisoned = (call(key, each, batch) for each in (network, poison(network)))
    _check_scores(scores, network, where)
    said = f"reads what disabled masks have stored, {where}: use `effective_params`, and leave disabled masks out,"
    _check_same(scores, poisoned, network, said, tolerance=0.0)


def _check_scores(scores: Scores, network: Network, where: str) -> None:
    if set(scores) != set(network.groups.names):
        _fail(f"The selector scores {sorted(scores)} {where}; the groups are {sorted(network.groups.names)}.")
    for group in network.groups:
        values = jnp.asarray(scores[group.name])
        if values.shape != (group.size,) or not jnp.issubdtype(values.dtype, jnp.floating):
            found = f"{values.dtype}{list(values.shape)}"
            _fail(f"The scores of `{group.name}` are {found} {where}, not float[{group.size}].")
        bad = np.flatnonzero(~np.isfinite(np.asarray(values)) & np.asarray(network.enabled[group.name]))
        if len(bad):
            _fail(f"The scores of `{group.name}` are not finite at the enabled masks {bad.tolist()} {where}.")


def _check_same(scores: Scores, others: Scores, network: Network, said: str, *, tolerance: float) -> None:
    """At enabled masks, bit for bit if `tolerance` is 0; else it is a share of the largest score of the group."""
    for group in network.groups:
        enabled = np.asarray(network.enabled[group.name])
        one, two = (np.asarray(each[group.name])[enabled] for each in (scores, others))
        allowed = tolerance * max(1e-3, np.max(np.abs(one), initial=0.0)) if tolerance else 0.0
        if not np.all(np.abs(one - two) <= allowed):  # a NaN fails
            _fail(f"The selector {said} (group `{group.name}`: {one} and {two}).")


def _run_compiled(compiled: Callable[..., Scores], arguments: tuple[Any, ...]) -> Scores:
    try:
        return compiled(*arguments)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise AssertionError(f"The selector does not run under jax.jit; use jax.numpy throughout: {error}") from error


def _bits(network: Network) -> tuple[Any, list[bytes]]:
    leaves, structure = jax.tree.flatten(network)
    return structure, [np.asarray(leaf).tobytes() for leaf in leaves]


def _fail(sentence: str) -> NoReturn:
    raise AssertionError(sentence)
