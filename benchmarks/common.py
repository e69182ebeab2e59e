"""What the benchmarks share: a small problem to train, variants that take turns, and the facts that go with numbers.

Quote ratios: times depend on the machine and on who else uses it. So all variants of one comparison take turns, after
a warm-up, and compilation is timed apart.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import maskprune
from maskprune.report.terminal import outputs as outputs


MB = 1e6
CHUNK = 100  # steps a dispatch, as in sessions by default
Row = dict[str, Any]
MEMORY = ("argument_mb", "output_mb", "temp_mb", "program_mb")


# Variants


class Variant(NamedTuple):
    """`run(count)` gives the milliseconds of one of `count` steps or calls; `compile_s` are those of the first one."""

    name: str
    run: Callable[[int], float]
    compile_s: float


def variant(name: str, run: Callable[[int], Any]) -> Variant:
    """From `run(count)`, which takes so many steps. Makes the first of them."""

    def timed(count: int) -> float:
        began = time.perf_counter()
        jax.block_until_ready(run(count))
        return (time.perf_counter() - began) / count * 1e3

    return Variant(name, timed, timed(1) / 1e3)


def calls(name: str, call: Callable[[], Any]) -> Variant:
    """From a function without arguments, called again and again; every result is waited for."""

    def run(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(call())

    return variant(name, run)


def measure(variants: Sequence[Variant], repeats: int, *, count: int = 1000, budget: float = np.inf) -> list[Row]:
    """Milliseconds of a step or call: median, and the spread as the ratio of the 90 % to the 10 % quantile.

    Args:
        variants: Take turns.
        repeats: Timings of each.
        count: Steps or calls of a timing, at most.
        budget: Seconds of a timing: of slow variants it has fewer steps or calls, at least one.
    """
    counts = []
    for each in variants:
        pace = each.run(count if budget == np.inf else 1)  # warm
        counts.append(fitting(count, budget, pace))
    times: list[list[float]] = [[] for _ in variants]
    for _ in range(repeats):
        for taken, each, many in zip(times, variants, counts, strict=True):
            taken.append(each.run(many))
    rows = zip(variants, times, counts, strict=True)
    return [{"name": v.name, **summary(taken), "compile_s": v.compile_s, "count": many} for v, taken, many in rows]


def fitting(count: int, budget: float, pace_ms: float) -> int:
    """How many steps of so many milliseconds fit into so many seconds: at most `count`, at least 1."""
    return int(np.clip(budget * 1e3 / pace_ms, 1, count))


def summary(times: Sequence[float]) -> Row:
    low, median, high = (float(each) for each in np.quantile(times, [0.1, 0.5, 0.9]))
    return {"median_ms": median, "spread": high / low}


# A problem to train


class Problem(NamedTuple):
    """A network, what it learns, and its pictures. `keys` for one network, or as many as there are members."""

    model: Any
    optimizer: optax.GradientTransformation
    loss: Callable[..., jax.Array]
    step: Callable[..., Any]
    draw: Callable[[jax.Array, Any], Any]
    pictures: jax.Array

    def state(self, key: jax.Array) -> maskprune.TrainState:
        network = maskprune.init_network(self.model.init(key), self.model.groups)
        return maskprune.init_state(network, self.optimizer)

    def states(self, keys: jax.Array) -> maskprune.TrainState:
        return jax.jit(jax.vmap(self.state))(keys)


def problem(
    size: int,
    batch: int,
    *,
    widths: Sequence[int] = (5, 5),
    way: Any = None,
    optimizer: optax.GradientTransformation | None = None,
    pool: int = 0,
) -> Problem:
    """Half the brightness is to be learned, in float32. With a `pool` every step draws its batch from so many pictures.

    Adam and the default way of convolution, unless others are given.
    """
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    model = maskprune.models.fcn(widths, convolution=partial(maskprune.conv2d, way=way))
    pictures = jax.random.uniform(jax.random.key(0), (pool or batch, size, size, 1))
    loss = lambda params, found: maskprune.losses.mse(model.apply(params, found), 0.5 * found)
    some = lambda key, data: data[jax.random.randint(key, (batch,), 0, pool)]
    step = maskprune.make_train_step(loss, optimizer)
    return Problem(model, optimizer, loss, step, some if pool else lambda key, data: data, pictures)


def title(widths: Sequence[int]) -> str:
    return "-".join(map(str, (1, *widths, 1)))


# Memory


def program_memory(program: jax.stages.Compiled) -> Row:
    """What a compiled program needs, in megabytes, as far as the device says so."""
    stats = program.memory_analysis()
    if stats is None:
        return dict.fromkeys(MEMORY)
    parts = stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.temp_size_in_bytes
    return dict(zip(MEMORY, (each / MB for each in (*parts, sum(parts))), strict=True))


def peak_mb() -> float:
    """Peak resident size of this process so far, in megabytes.

    `getrusage` also counts what the parent held when it started this process; the kernel's own page does not.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


# Results


def said(rows: Iterable[Row], say: Callable[[Row], None]) -> Iterator[Row]:
    """The rows, each printed as soon as it is there."""
    for row in rows:
        say(row)
        yield row


def driver() -> Row:
    """The version of the GPU's driver, where there is a GPU and NVIDIA's tool to ask."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if jax.default_backend() != "gpu" or not shutil.which(command[0]):
        return {}
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.split()
    return {"driver": said[0]} if said else {}


def facts() -> Row:
    return {
        "device": maskprune.record.device(),
        **driver(),
        "versions": maskprune.record.versions(),
        "precision": "float32",
        "convolution": maskprune.conv.describe_way(),
    }


def write(path: Path | None, rows: Sequence[Row], **more: Any) -> None:
    """Writes a result, if a file is asked for."""
    if path:
        maskprune.record.write_json(path, {**facts(), **more, "rows": rows})
