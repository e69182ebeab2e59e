"""Which recipe reaches the lowest error in the same time?

Trains small networks on the Sobel task and measures the relative RMSE on the evaluation pictures. Every recipe gets the
time that `--steps` steps of the default (`soap`) take: a first, short session of each recipe, in turns, tells how long
its steps are, compilation apart, and the sessions proper have as many steps as fit. Starts, the same for all recipes:
`scratch` is a fresh draw that is not blind; `continued` was trained by the default with one mask more in its first
layer, then lost the mask that `cosine("max")` names, which is what sessions of a search begin with.

    python benchmarks/convergence.py --json benchmarks/results/convergence_cpu.json
    python benchmarks/convergence.py --networks 2,2 --recipes soap averaged --steps 200 --seeds 2
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from common import Row, outputs, said, title, write

import maskprune
from maskprune import select


CHUNK = 20  # steps a dispatch: sessions of dear steps are short
CROPS = {"batch": 8, "crop": 64}
LARGE = {"batch": 16, "crop": 32}  # 6400 residuals
GOOD = 0.05  # the relative RMSE that four masks can reach


class Recipe(NamedTuple):
    """An optimizer, how batches are cut, and whether its steps are those of Levenberg and Marquardt."""

    optimizer: optax.GradientTransformation
    crops: dict[str, int] = CROPS
    second_order: bool = False


def soap_with(schedule: Any, rate: float = 2e-2, *, b2: float = 0.99) -> optax.GradientTransformation:
    return optax.chain(
        maskprune.optim.scale_by_soap(b2=b2), maskprune.optim.scale_by_progress(schedule), optax.scale(-rate)
    )


def recipes() -> dict[str, Recipe]:
    cosine, average = maskprune.optim.cosine, maskprune.optim.land_on_average
    adam = optax.chain(optax.scale_by_adam(), maskprune.optim.scale_by_progress(cosine), optax.scale(-5e-3))
    return {
        "soap": Recipe(maskprune.optim.soap()),
        "adam": Recipe(adam),
        "soap, restarts": Recipe(soap_with(maskprune.optim.restarts(3))),
        "soap, larger batches late": Recipe(
            maskprune.optim.accumulate(maskprune.optim.soap(), maskprune.optim.doubling())
        ),
        "soap, b2 0.95": Recipe(soap_with(cosine, b2=0.95)),
        "soap, averaged": Recipe(optax.chain(soap_with(maskprune.optim.level, 1e-2), average(0.75))),
        "soap_averaged (b2 0.95)": Recipe(maskprune.optim.soap_averaged()),
        "levenberg": Recipe(optax.chain(maskprune.optim.levenberg(), average(0.5)), LARGE, second_order=True),
    }


class Runner(NamedTuple):
    """`run(key, params, steps) -> (state, milliseconds a step, seconds of compiling)`."""

    run: Any
    evaluate: Any


def runner(widths: Sequence[int], dataset: Any, recipe: Recipe) -> Runner:
    model = maskprune.models.fcn(widths)
    task = maskprune.picture_task(model.apply, dataset, **recipe.crops)
    make = maskprune.optim.make_levenberg_step if recipe.second_order else maskprune.make_train_step
    step = make(task.residuals if recipe.second_order else task.loss, recipe.optimizer)
    session = maskprune.make_session(step, task.draw, chunk=CHUNK)

    def run(key: jax.Array, params: Any, steps: int) -> Any:
        state = maskprune.init_state(maskprune.init_network(params, model.groups), recipe.optimizer)
        state, report = session.run(key, state, task.data, steps)
        pace = (report.seconds - report.compile_seconds) / max(1, len(report.losses)) * 1e3
        return state, pace, report.compile_seconds

    return Runner(run, task.evaluate)


# Starts


def scratch(widths: Sequence[int], dataset: Any, seed: int, *, steps: int, attempts: int = 16) -> Any:
    """Parameters of the first draw that is not blind after so many steps: as they were drawn."""
    model = maskprune.models.fcn(widths)
    optimizer, task = maskprune.optim.soap(), maskprune.picture_task(model.apply, dataset, **CROPS)
    session = maskprune.make_session(maskprune.make_train_step(task.loss, optimizer), task.draw, chunk=CHUNK)
    for attempt in range(attempts):
        draw, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), attempt))
        params = model.init(draw)
        state = maskprune.init_state(maskprune.init_network(params, model.groups), optimizer)
        if not task.trouble(session.run(key, state, task.data, steps)[0]):
            return params
    raise RuntimeError(f"None of {attempts} draws of {title(widths)} learned anything: try other seeds.")


def continued(widths: Sequence[int], dataset: Any, seed: int, *, steps: int) -> Any:
    """Parameters after a cut: trained with one mask more in the first layer, without the mask that cosine names."""
    wider = (widths[0] + 1, *widths[1:])
    found, name = runner(wider, dataset, Recipe(maskprune.optim.soap())), maskprune.models.fcn(wider).groups.names[0]
    params = scratch(wider, dataset, seed, steps=steps)
    network = found.run(jax.random.fold_in(jax.random.key(seed), 1), params, steps)[0].network
    scores = select.cosine("max")(jax.random.key(0), network, None)[name]
    chosen = maskprune.choose(network, {name: [int(np.argmin(scores))]})
    return maskprune.compact_network(maskprune.disable(network, chosen)).params


STARTS = {"scratch": scratch, "continued": continued}


# Sessions


def paces(runners: dict[str, Runner], params: Any, *, turns: int = 5) -> dict[str, Row]:
    """For every recipe, milliseconds of a step, relative to the first one's, and of compiling. In turns, the fastest
    counts: what else runs on the machine only ever adds.
    """
    key = jax.random.key(0)
    compiling = {name: each.run(key, params, 1)[2] for name, each in runners.items()}
    found = [{name: each.run(key, params, CHUNK)[1] for name, each in runners.items()} for _ in range(turns)]
    best = {name: min(turn[name] for turn in found) for name in runners}
    first = next(iter(best.values()))
    return {
        name: {"step_ms": best[name], "ratio_to_first": best[name] / first, "compile_s": compiling[name]}
        for name in runners
    }


def rows_of(widths: Sequence[int], dataset: Any, chosen: dict[str, Recipe], options: Any) -> Iterator[Row]:
    runners = {name: runner(widths, dataset, recipe) for name, recipe in chosen.items()}
    for start in options.starts:
        make = partial(STARTS[start], widths, dataset, steps=options.steps // 4)
        begun = {seed: make(seed) for seed in range(options.seeds)}
        for name, pace in paces(runners, begun[0]).items():
            steps = max(1, round(options.steps / pace["ratio_to_first"]))
            keys = {seed: jax.random.fold_in(jax.random.key(seed), 2) for seed in begun}
            states = [runners[name].run(keys[seed], params, steps)[0] for seed, params in begun.items()]
            errors = [runners[name].evaluate(state)["relative_rmse"] for state in states]
            about = {"network": title(widths), "start": start, "name": name, "steps": steps}
            good = float(np.mean(np.asarray(errors) < GOOD))
            yield {**about, **pace, "relative_rmse": errors, "median": float(np.median(errors)), "good": good}


def say(row: Row) -> None:
    print(
        f"{row['network']:<9} {row['start']:<9} {row['name']:<24} {row['steps']:>6} steps of {row['step_ms']:8.2f} ms  "
        f"relative RMSE {row['median']:.4f} ({' '.join(f'{each:.4f}' for each in row['relative_rmse'])})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    widths = lambda text: tuple(int(each) for each in text.split(","))
    parser.add_argument("--networks", type=widths, nargs="+", default=[(5, 5), (2, 2), (1, 3)], help="such as 5,5")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--recipes", nargs="+", choices=recipes(), default=list(recipes()), help="the first gives time")
    parser.add_argument("--steps", type=int, default=800, help="steps of the first recipe, at least 4")
    parser.add_argument("--seeds", type=int, default=3, help="sessions of each")
    parser.add_argument("--size", type=int, default=256, help="side of the stored pictures")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    dataset = maskprune.data.make_dataset(maskprune.data.sobel(), size=options.size)
    chosen, rows = {name: recipes()[name] for name in options.recipes}, []
    for network in options.networks:
        rows += said(rows_of(network, dataset, chosen, options), say)
        write(options.json, rows, steps=options.steps, seeds=options.seeds, good=GOOD)


if __name__ == "__main__":
    with outputs():
        main()
