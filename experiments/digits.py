"""Half the multiply-adds of a residual network: what does it cost, and how much faster is what is left?

Trains a small Flax ResNet with batch norm on the handwritten digits of scikit-learn (1797 pictures of 8x8), removes
masks until half of its multiply-adds are left, trains on with the physically smaller network, and times both. Beside
the method there are baselines with the same budget: equal shares of every group, random masks, and nothing removed.

    pip install -e ".[test]"        (for scikit-learn, which brings the pictures)
    python experiments/digits.py
    python experiments/digits.py --seeds 3 --methods taylor magnitude uniform random none
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import maskprune as mp
from maskprune import linen, select
from maskprune.app.options import Problem, output, positive, refuse, several, share, whole
from maskprune.app.protocol import in_a_sentence
from maskprune.app.runs import going_on
from maskprune.report.terminal import outputs


Method = Literal["taylor", "magnitude", "uniform", "random", "none"]
BATCHES = (1, 256)  # pictures in a timed call


@dataclasses.dataclass(frozen=True)
class Config:
    """How to train, what to remove."""

    methods: tuple[Method, ...] = ("taylor", "none")
    """taylor, magnitude: their scores over the multiply-adds saved. uniform: the same share of every group, smallest
    first. random: any masks. none: nothing is removed, with as much training."""
    seeds: int = 1
    """Runs of each, which differ in initial weights, order of the pictures and random choices, not in the split."""
    share: float = 0.5
    """Of the multiply-adds, that stay."""
    rounds: int = 8
    """Removals, with a short session of training after each."""
    epochs: tuple[int, int, int] = (20, 1, 15)
    """Of the first session, of each round, and of the last session."""
    batch: int = 64
    """Pictures in a step."""
    learning_rate: float = 3e-3
    """Peak; every session follows half a cosine down to 0."""
    widths: tuple[int, int, int] = (16, 32, 64)
    """Channels of the three stages."""
    blocks: int = 2
    """Residual blocks in a stage."""
    timings: int = 100
    """Timed calls of each network."""
    out: Path = Path("runs/digits")
    """Where `result.json` goes."""


def problems(config: Config) -> list[Problem]:
    """What may be wrong with the options, by their names."""
    width = lambda name, value: whole(name, value, most=4096)
    return [
        several("--methods", config.methods),
        whole("--seeds", config.seeds),
        share("--share", config.share, "(0, 1)"),
        whole("--rounds", config.rounds),
        several("--epochs", config.epochs, lambda name, value: whole(name, value, 0)),
        whole("--batch", config.batch, most=1078),  # all that there is to train on
        positive("--learning-rate", config.learning_rate),
        several("--widths", config.widths, width),
        whole("--blocks", config.blocks, most=64),
        whole("--timings", config.timings),
        output("--out", config.out),
    ]


# The network, ordinary Flax: nothing in it knows of masks


class Block(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:  # [N, H, W, C]
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        conv = functools.partial(nn.Conv, self.width, use_bias=False)
        y = nn.relu(norm()(conv((3, 3), self.stride, padding=1)(x)))
        y = norm()(conv((3, 3), padding=1)(y))
        same = self.stride == 1 and x.shape[-1] == self.width
        return nn.relu(y + (x if same else norm()(conv((1, 1), self.stride)(x))))


class ResNet(nn.Module):
    widths: Sequence[int]
    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:  # [N, 8, 8, 1] -> [N, 10]
        x = nn.Conv(self.widths[0], (3, 3), padding=1, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = Block(width, stride=2 if stage and not block else 1)(x, train)
        return nn.Dense(10)(x.mean((1, 2)))


class Part(NamedTuple):
    pictures: jax.Array  # float32[N, 8, 8, 1] in [0, 1]
    labels: jax.Array  # int[N]


def load_digits() -> dict[str, Part]:
    """60 % to train on, 20 % to choose methods by, 20 % that decide nothing."""
    from sklearn import datasets

    found: Any = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pictures, labels = found.images[order, :, :, None].astype(np.float32) / 16, found.target[order]
    ends = [int(0.6 * len(order)), int(0.8 * len(order))]
    parts = zip(jnp.split(pictures, ends), jnp.split(labels, ends), strict=True)
    return dict(zip(("train", "validation", "test"), (Part(*part) for part in parts), strict=True))


def make_loss(train_apply: Callable[..., Any]) -> Callable[..., Any]:
    def loss(params: Any, batch: Part, model_state: Any, _: Any) -> tuple[jax.Array, Any]:
        logits, model_state = train_apply(params, model_state, batch.pictures)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean(), model_state

    return loss


def train(step: Any, state: Any, data: Part, epochs: int, *, batch: int, seed: Sequence[int]) -> mp.TrainState:
    """Steps one by one: XLA's convolutions are several times slower inside a compiled loop on a CPU."""
    rng, count = np.random.default_rng(seed), len(data.labels) // batch
    for epoch in range(epochs):
        order = rng.permutation(len(data.labels))
        for number in range(count):
            rows = order[number * batch : (number + 1) * batch]
            progress = np.float32((epoch * count + number) / (epochs * count))
            state, _ = step(state, Part(data.pictures[rows], data.labels[rows]), progress=progress)
    return state


def accuracy(run: Callable[[jax.Array], jax.Array], data: Part) -> float:
    return float(jnp.mean(jnp.argmax(run(data.pictures), axis=1) == data.labels))


# Which masks go


def make_selector(method: Method, loss: Callable[..., Any], found: mp.Cost) -> mp.select.Selector:
    """Its batch is `(training data, model state)`.

    In training mode the loss does not depend on the scale of a kernel before a batch norm, so what Taylor's sum finds
    is the derivative to a gate behind it.
    """
    taylor = select.taylor(lambda params, batch: loss(params, *batch, None)[0])
    return {
        "taylor": select.weigh(taylor, found.saving("multiply_adds")),
        "magnitude": select.weigh(select.magnitude(2), found.saving("multiply_adds")),
        "uniform": select.equal_shares(select.magnitude(2)),
        "random": select.random(),
    }[method]


def remove(network: mp.Network, order: Sequence[tuple[str, int]], found: mp.Cost, limit: float) -> mp.Network:
    """Disables masks in this order until the multiply-adds are within the limit. The last of a group stays."""
    enabled = {name: np.array(flags) for name, flags in network.enabled.items()}
    for name, number in order:
        if found.sizes.evaluate(enabled, "multiply_adds")[0] <= limit:
            break
        enabled[name][number] &= enabled[name].sum() == 1
    return mp.disable(network, {name: ~flags for name, flags in enabled.items()})


class Full(NamedTuple):
    """The network before anything is removed, and what is compiled once for all seeds and methods."""

    variables: Callable[[jax.Array], Any]
    apply: Callable[..., Any]
    train_apply: Callable[..., Any]
    groups: mp.Groups
    cost: mp.Cost
    optimizer: optax.GradientTransformation
    step: Callable[..., Any]


def build(config: Config, data: dict[str, Part]) -> Full:
    module, picture = ResNet(config.widths, config.blocks), data["train"].pictures[:1]
    variables = jax.jit(lambda key: module.init(key, picture))
    apply, params, model_state = linen.from_module(module, jax.eval_shape(variables, jax.random.key(0)))
    train_apply = linen.training(module, settings={"train": True})
    groups = mp.trace(apply, params, picture, model_state=model_state)
    found = mp.cost(apply, params, picture, model_state=model_state, groups=groups)
    optimizer = optax.chain(
        optax.adamw(config.learning_rate, weight_decay=1e-2), mp.optim.scale_by_progress(mp.optim.cosine)
    )
    step = jax.jit(mp.make_train_step(make_loss(train_apply), optimizer, stateful=True))
    return Full(variables, jax.jit(apply), train_apply, groups, found, optimizer, step)


def prune(config: Config, full: Full, state: mp.TrainState, data: Part, method: Method, seed: int) -> mp.TrainState:
    """Rounds of removing masks and training on, down to the share of multiply-adds that is to stay."""
    selector = None if method == "none" else make_selector(method, make_loss(full.train_apply), full.cost)
    score = selector and jax.jit(selector)
    for number in range(1, config.rounds + 1):
        network = state.network
        if score:
            key = jax.random.fold_in(jax.random.key(seed), number)
            order = select.rank(score(key, network, (data, state.model_state)), network)
            limit = full.cost.multiply_adds * (1 - (1 - config.share) * number / config.rounds)
            network = remove(network, order, full.cost, limit)
        state = mp.init_state(network, full.optimizer, state.model_state)
        state = train(full.step, state, data, config.epochs[1], batch=config.batch, seed=(seed, number))
    return state


def finish(config: Config, full: Full, state: mp.TrainState, data: dict[str, Part], seed: int) -> dict[str, Any]:
    """Compacts, checks that this changed nothing, trains on in small, and measures."""
    pictures, plan = data["test"].pictures, mp.make_plan(state.network.groups, state.network.enabled)
    apply, _ = mp.compact(full.apply, state.network, pictures, model_state=state.model_state)
    apply, small = jax.jit(apply), mp.compact_state(state)
    masked = functools.partial(full.apply, mp.effective_params(state.network), state.model_state)
    apart = jnp.max(jnp.abs(masked(pictures) - apply(small.network.params, small.model_state, pictures)))
    loss = make_loss(mp.shrink(full.train_apply, plan, stateful=True))
    step = jax.jit(mp.make_train_step(loss, full.optimizer, stateful=True))
    small = train(step, small, data["train"], config.epochs[2], batch=config.batch, seed=(seed, config.rounds + 1))
    found = functools.partial(apply, small.network.params, small.model_state)
    counted = mp.cost(apply, small.network.params, pictures[:1], model_state=small.model_state, groups=mp.Groups(()))
    batches = {str(count): jnp.resize(pictures, (count, *pictures.shape[1:])) for count in BATCHES}
    return {
        "accuracy_compacted": accuracy(masked, data["test"]),  # before the last session
        "accuracy_after": accuracy(found, data["test"]),
        "validation": accuracy(found, data["validation"]),
        "masked_and_compact_differ_by": float(apart),
        "multiply_adds": counted.multiply_adds,
        "parameters": counted.parameters,
        "masks": mp.count_enabled(state.network),
        "times": {name: time_both(masked, found, batch, config.timings) for name, batch in batches.items()},
    }


def time_both(full: Callable[[Any], Any], small: Callable[[Any], Any], batch: Any, repeats: int) -> dict[str, float]:
    """Milliseconds of a call of the full and of the small network, taken in turns."""
    before, after = mp.time_calls([lambda: full(batch), lambda: small(batch)], repeats=repeats)
    both = {"full_ms": before.median_ms, "full_spread": before.spread}
    both |= {"small_ms": after.median_ms, "small_spread": after.spread}
    return both | {"speedup": before.median_ms / after.median_ms}


def run_seed(config: Config, full: Full, data: dict[str, Part], seed: int) -> list[dict[str, Any]]:
    variables = dict(full.variables(jax.random.key(seed)))
    network = mp.init_network(variables.pop("params"), full.groups)
    state = mp.init_state(network, full.optimizer, variables)
    state = train(full.step, state, data["train"], config.epochs[0], batch=config.batch, seed=(seed, 0))
    before = accuracy(functools.partial(full.apply, state.network.params, state.model_state), data["test"])
    rows = []
    for method in config.methods:
        began = time.perf_counter()
        pruned = prune(config, full, state, data["train"], method, seed)
        row = {"method": method, "seed": seed, "accuracy_before": before} | finish(config, full, pruned, data, seed)
        rows.append(row | {"seconds": round(time.perf_counter() - began, 1)})
        print(line(rows[-1]), flush=True)
    return rows


HEAD = "method     seed  accuracy: full  compacted  trained on  multiply-adds  parameters  faster: batch 1  batch 256"


def line(row: dict[str, Any]) -> str:
    speedups = [row["times"][count]["speedup"] for count in ("1", "256")]
    return (
        f"{row['method']:9}  {row['seed']:4}  {row['accuracy_before']:14.4f}  {row['accuracy_compacted']:9.4f}  "
        f"{row['accuracy_after']:10.4f}  {row['multiply_adds']:13,}  {row['parameters']:10,}  {speedups[0]:14.2f}x  "
        f"{speedups[1]:8.2f}x"
    )


def main(config: Config) -> dict[str, Any]:
    """Runs every method with every seed. Returns what `result.json` holds."""
    refuse("digits.py", problems(config))
    data = load_digits()
    full = build(config, data)
    print(f"{full.cost.multiply_adds:,} multiply-adds, {full.cost.parameters:,} parameters\n{HEAD}")
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("out", "seeds")}
    with going_on("digits.py", config.out, print, at_once=True):
        with in_a_sentence("digits.py"):
            ledger = mp.Ledger.open(config.out / "rows.jsonl", {"config": settings})
        for seed in range(config.seeds):
            if not ledger.find(seed=seed):
                ledger.add(run_seed(config, full, data, seed))
    rows = [row for seed in range(config.seeds) for row in ledger.find(seed=seed)]
    result = {
        "device": mp.record.device(),
        "versions": mp.record.versions(),
        "load": os.getloadavg()[0],  # more than the cores: others were at work
        "config": settings | {"seeds": config.seeds},
        "multiply_adds": full.cost.multiply_adds,
        "parameters": full.cost.parameters,
        "rows": rows,
    }
    mp.record.write_json(config.out / "result.json", result)
    return result


if __name__ == "__main__":
    with outputs():
        main(tyro.cli(Config, description=__doc__))
