"""The experiment of `experiments/digits.py` in PyTorch, pruned by torch-pruning.

The same residual network, initial distribution, pictures, split, optimizer, sessions and share of multiply-adds that
stays. Masks go by torch-pruning's group importance, by default over all layers at once (`global`), or the same share
of every layer (`local`). Runs in an environment of its own: torch, torch-pruning and scikit-learn, no JAX.

    python experiments/digits.py --seeds 3 --methods taylor uniform none random
    ../torch/bin/python benchmarks/digits_torch_pruning.py --seeds 3 --ours runs/digits/result.json \
        --json benchmarks/results/digits_cpu.json
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import math
import os
import platform
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from sklearn import datasets
from torch import nn
from torch.nn import functional


Part = tuple[torch.Tensor, torch.Tensor]  # float32[N, 1, 8, 8], int64[N]
METHODS = ("taylor-global", "magnitude-global", "magnitude-local", "none")
ROUNDS, EPOCHS, BATCH, RATE, SHARE, STEPS = 8, (20, 1, 15), 64, 3e-3, 0.5, 200  # STEPS: 0.5 % of the masks at a time


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.second, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        same = stride == 1 and inputs == width
        side = [nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
        self.side = nn.Identity() if same else nn.Sequential(*side)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.first(x)))
        return torch.relu(self.norm2(self.second(y)) + self.side(x))


class ResNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(Block(inputs, width, 2 if stage and not block else 1))
                inputs = width
        self.body, self.head = nn.Sequential(*layers), nn.Linear(inputs, 10)
        self.apply(_lecun_normal)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def _lecun_normal(layer: nn.Module) -> None:
    """The initial distribution of Flax."""
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        deviation = math.sqrt(1 / layer.weight[0].numel()) / 0.87962566103423978
        nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def load_digits() -> dict[str, Part]:
    found: Any = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pictures = torch.tensor(found.images[order][:, None].astype(np.float32) / 16)
    labels = torch.tensor(found.target[order])
    ends = [int(0.6 * len(order)), int(0.8 * len(order))]
    parts = zip(torch.tensor_split(pictures, ends), torch.tensor_split(labels, ends), strict=True)
    return dict(zip(("train", "validation", "test"), parts, strict=True))


def train(model: nn.Module, data: Part, epochs: int, *, seed: tuple[int, ...]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    rng, count = np.random.default_rng(seed), len(data[1]) // BATCH
    model.train()
    for epoch in range(epochs):
        order = torch.tensor(rng.permutation(len(data[1])))
        for number in range(count):
            rows = order[number * BATCH : (number + 1) * BATCH]
            done = (epoch * count + number) / (epochs * count)
            for group in optimizer.param_groups:  # `maskprune.optim.cosine`
                group["lr"] = RATE * min(done / 0.02, 1.0) * 0.5 * (1 + math.cos(math.pi * done))
            optimizer.zero_grad()
            functional.cross_entropy(model(data[0][rows]), data[1][rows]).backward()
            optimizer.step()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Part) -> float:
    return float((model.eval()(data[0]).argmax(1) == data[1]).float().mean())


@torch.inference_mode()
def multiply_adds(model: nn.Module) -> int:
    """Of convolutions and products, positions in the padding included, as `maskprune.cost` counts them."""
    found: list[int] = []

    def count(layer: Any, _: Any, output: torch.Tensor) -> None:
        found.append(output[0].numel() * layer.weight[0].numel())

    layers = [each for each in model.modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
    hooks = [each.register_forward_hook(count) for each in layers]
    model.eval()(torch.zeros(1, 1, 8, 8))
    for hook in hooks:
        hook.remove()
    return sum(found)


def prune(model: Any, data: Part, method: str, seed: int) -> None:
    """The rounds of `experiments/digits.py`: small steps of the pruner, down to the multiply-adds of the round."""
    family, _, scope = method.partition("-")
    full, pruner = multiply_adds(model), None
    if method != "none":
        importance = torch_pruning.importance
        made = {"magnitude": importance.GroupMagnitudeImportance, "taylor": importance.GroupTaylorImportance}[family]()
        pruner = torch_pruning.pruner.BasePruner(
            model,
            torch.zeros(1, 1, 8, 8),
            importance=made,
            global_pruning=scope == "global",
            pruning_ratio=0.99,
            iterative_steps=STEPS,
            ignored_layers=[model.head],
        )
    for number in range(1, ROUNDS + 1):
        while pruner is not None and multiply_adds(model) > full * (1 - (1 - SHARE) * number / ROUNDS):
            if family == "taylor":
                model.train().zero_grad()
                functional.cross_entropy(model(data[0]), data[1]).backward()
            pruner.step()
        train(model, data, EPOCHS[1], seed=(seed, number))


@torch.inference_mode()
def time_both(full: nn.Module, small: nn.Module, batch: torch.Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds of a call of the full and of the small network, taken in turns after two rounds of warm-up."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(-2, repeats):
        for times, model in zip(taken, (full.eval(), small.eval()), strict=True):
            began = time.perf_counter()
            model(batch)
            if number >= 0:
                times.append((time.perf_counter() - began) * 1e3)
    (low, full_ms, high), (low2, small_ms, high2) = (np.quantile(times, [0.1, 0.5, 0.9]) for times in taken)
    both = {"full_ms": full_ms, "full_spread": high / low, "small_ms": small_ms, "small_spread": high2 / low2}
    return both | {"speedup": full_ms / small_ms}


def run(options: argparse.Namespace, data: dict[str, Part], seed: int) -> list[dict[str, Any]]:
    torch.manual_seed(seed)
    began = time.perf_counter()
    full, rows = ResNet(), []
    train(full, data["train"], EPOCHS[0], seed=(seed, 0))
    first, before = time.perf_counter() - began, accuracy(full, data["test"])
    for method in options.methods:
        began, model = time.perf_counter(), copy.deepcopy(full)
        prune(model, data["train"], method, seed)
        compacted = accuracy(model, data["test"])
        train(model, data["train"], EPOCHS[2], seed=(seed, ROUNDS + 1))
        seconds = round(first + time.perf_counter() - began, 1)
        repeated = [data["test"][0][torch.arange(count) % len(data["test"][1])] for count in (1, 256)]
        row = {
            "method": method,
            "seed": seed,
            "accuracy_before": before,
            "accuracy_compacted": compacted,
            "accuracy_after": accuracy(model, data["test"]),
            "validation": accuracy(model, data["validation"]),
            "multiply_adds": multiply_adds(model),
            "parameters": sum(each.numel() for each in model.parameters()),
            "times": {str(len(batch)): time_both(full, model, batch, options.timings) for batch in repeated},
            "seconds": seconds,
        }
        rows.append(row)
        print({key: value for key, value in row.items() if key != "times"}, flush=True)
        print({count: round(float(found["speedup"]), 2) for count, found in row["times"].items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="more are far slower where others use the cores too")
    parser.add_argument("--timings", type=int, default=100, help="timed calls of each network")
    parser.add_argument("--ours", type=Path, help="result.json of experiments/digits.py, to stand beside")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, full = load_digits(), ResNet()
    found = {
        "device": f"cpu ({platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads)",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torch-pruning", "scikit-learn")},
        "multiply_adds": multiply_adds(full),
        "parameters": sum(each.numel() for each in full.parameters()),
        "rows": [row for seed in range(options.seeds) for row in run(options, data, seed)],
        "load": os.getloadavg()[0],
    }
    if options.json:
        ours = {"maskprune": json.loads(options.ours.read_text("utf-8"))} if options.ours else {}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(ours | {"torch-pruning": found}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads may stop
    main()
