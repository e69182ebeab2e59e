"""The networks of `architectures.py` in PyTorch, and the time torch-pruning takes to understand them.

Written out here because torchvision is not needed for anything else. Runs in an environment of its own, without JAX:
`trace_time.py` starts it as `python torch_architectures.py NAME ... --repeats N` and reads one line of JSON per timing.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import signal
import time
from collections.abc import Callable

import torch
from torch import nn


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def stem() -> list[nn.Module]:
    return [*conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *conv_norm(inputs, width, 1),
            nn.ReLU(),
            *conv_norm(width, width, 3, stride),
            nn.ReLU(),
            *conv_norm(width, 4 * width, 1),
        )
        same = inputs == 4 * width and stride == 1
        self.side = nn.Identity() if same else nn.Sequential(*conv_norm(inputs, 4 * width, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.main(x) + self.side(x))


def resnet(*blocks: int) -> nn.Module:
    layers, channels = stem(), 64
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(Bottleneck(channels, 64 * 2**stage, 2 if stage and not block else 1))
            channels = 256 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int = 32) -> None:
        super().__init__()
        wide = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        narrow = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.main = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), wide, nn.BatchNorm2d(4 * growth), nn.ReLU(), narrow
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.main(x)], 1)


def densenet121() -> nn.Module:
    layers, channels = stem(), 64
    for stage, count in enumerate((6, 12, 24, 16)):
        if stage:
            half = nn.Conv2d(channels, channels // 2, 1, bias=False)
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), half, nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(count):
            layers.append(DenseLayer(channels))
            channels += 32
    head = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*layers, *head)


class Squeeze(nn.Module):
    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        down, up = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), down, nn.SiLU(), up, nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)


class InvertedResidual(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, expand: int, kernel: int, stride: int, activation: Callable, squeeze: bool
    ) -> None:
        super().__init__()
        inner = inputs * expand
        layers = [] if expand == 1 else [*conv_norm(inputs, inner, 1), activation()]
        layers += [*conv_norm(inner, inner, kernel, stride, inner), activation()]
        layers += [Squeeze(inner, inputs // 4)] if squeeze else []
        self.main = nn.Sequential(*layers, *conv_norm(inner, outputs, 1))
        self.same = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.main(x) if self.same else self.main(x)


def inverted(stages: tuple, activation: Callable, squeeze: bool) -> nn.Module:
    layers, channels = [*conv_norm(3, 32, 3, 2), activation()], 32
    for expand, width, blocks, stride, kernel in stages:
        for block in range(blocks):
            step = 1 if block else stride
            layers.append(InvertedResidual(channels, width, expand, kernel, step, activation, squeeze))
            channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *conv_norm(channels, 1280, 1), activation(), *head)


def mobilenet_v2() -> nn.Module:
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    return inverted(tuple((*stage, 3) for stage in stages), nn.ReLU6, False)


def efficientnet_b0() -> nn.Module:
    stages = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5))
    return inverted((*stages, (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)), nn.SiLU, True)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class VitB16(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 16, 16)
        self.first = nn.Parameter(torch.zeros(1, 1, 768))
        self.positions = nn.Parameter(torch.randn(1, 197, 768) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(768, 12, 3072) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(768, 1e-6), nn.Linear(768, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet50": (lambda: resnet(3, 4, 6, 3), 25_557_032),
    "densenet121": (densenet121, 7_978_856),
    "mobilenet_v2": (mobilenet_v2, 3_504_872),
    "efficientnet_b0": (efficientnet_b0, 5_288_548),
    "vit_b16": (VitB16, 86_567_656),
    "resnet101": (lambda: resnet(3, 4, 23, 3), 44_549_160),
    "resnet152": (lambda: resnet(3, 8, 36, 3), 60_192_808),
}
"""Name to model and its published number of parameters."""


def build(name: str) -> nn.Module:
    """In evaluation mode. Raises a `ValueError` if the number of parameters is not the published one."""
    make, published = ARCHITECTURES[name]
    model = make().eval()
    counted = sum(parameter.numel() for parameter in model.parameters())
    if counted != published:
        raise ValueError(f"{name} has {counted} parameters, published are {published}: the architecture was changed")
    return model


def measure(model: nn.Module, output: nn.Module) -> dict[str, float]:
    """The dependency graph, then half the channels of every group, as torch-pruning's own pruners go about it.

    Returns:
        Milliseconds of the clock and of the processor, and how many groups and channels were found.
    """
    import torch_pruning

    example = torch.zeros(1, 3, 224, 224)
    clocks = lambda: (time.perf_counter(), time.process_time())
    gc.collect()
    gc.disable()
    marks = [clocks()]
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    marks.append(clocks())
    groups = graph.get_all_groups(ignored_layers=[output], root_module_types=[nn.Conv2d, nn.Linear])
    widths = []
    for group in groups:
        width = graph.get_out_channels(group[0].dep.target.module)
        graph.get_pruning_group(group[0].dep.target.module, group[0].dep.handler, list(range(width // 2)))
        widths.append(width)
    marks.append(clocks())
    gc.enable()
    wall, cpu = ([(after[i] - before[i]) * 1e3 for before, after in itertools.pairwise(marks)] for i in (0, 1))
    counted = {"groups": len(widths), "masks": sum(widths)}
    return {**counted, "trace_ms": wall[0], "plan_ms": wall[1], "trace_cpu_ms": cpu[0], "plan_cpu_ms": cpu[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=ARCHITECTURES)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    import torch_pruning

    torch.set_num_threads(1)
    print(json.dumps({"torch": torch.__version__, "torch-pruning": torch_pruning.__version__}))
    for name in options.names:
        for _ in range(options.repeats + 1):  # the first is a warm-up
            model = build(name)
            output = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
            print(json.dumps({"name": name, **measure(model, output)}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads may stop
    main()
