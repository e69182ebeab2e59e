"""The training step of `train_step.py` in PyTorch or TensorFlow, in a process of its own.

Prints the names of its variants as one line of JSON, with the seconds that their first calls took; then reads lines
`variant steps` and answers each with the milliseconds of one step. `train_step.py` starts it and lets it take turns
with itself: `python peers_train_step.py torch --size 128 --batch 3`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable


WIDTHS = (1, 5, 5, 1)
Run = Callable[[int], None]


def is_peer(name: str) -> bool:
    """Whether a row of the benchmark is of another library, in float32."""
    return not name.startswith("maskprune") and "TF32" not in name


def torch_variants(size: int, batch: int) -> dict[str, Run]:
    """Eager, with channels last, and compiled; on CUDA also whole steps as CUDA graphs. The data are on the device."""
    import torch
    from torch import nn

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True

    def make(*, last: bool = False, mode: str = "", graph: bool = False) -> Run:
        torch.manual_seed(0)
        layers = [(nn.Conv2d(a, b, 5, padding=2), nn.ReLU()) for a, b in itertools.pairwise(WIDTHS)]
        model = nn.Sequential(*(each for pair in layers for each in pair)).to(device)
        pictures = torch.rand(batch, 1, size, size, device=device)
        if last:
            model = model.to(memory_format=torch.channels_last)
            pictures = pictures.to(memory_format=torch.channels_last)
        kind = {"fused": True, "capturable": graph} if cuda else {"foreach": True}
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, **kind)

        def loss() -> torch.Tensor:
            return ((model(pictures) - 0.5 * pictures) ** 2).mean()

        loss = torch.compile(loss, mode=mode) if mode else loss

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()

        step = graphed(step) if graph else step

        def run(steps: int) -> None:
            for _ in range(steps):
                step()
            if cuda:
                torch.cuda.synchronize()

        return run

    def graphed(step: Callable[[], None]) -> Callable[[], None]:
        """What `step` does on the device, recorded once and started again as one."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    name = f"PyTorch {torch.__version__}"
    variants = {f"{name}, eager": make(), f"{name}, channels last": make(last=True)}
    if not cuda:
        compiled = {
            "torch.compile": make(mode="default"),
            "torch.compile, channels last": make(last=True, mode="default"),
        }
        return variants | {f"{name}, {kind}": run for kind, run in compiled.items()}
    variants[f"{name}, torch.compile with CUDA graphs"] = make(mode="reduce-overhead")
    variants[f"{name}, one CUDA graph a step"] = make(graph=True)
    variants[f"{name}, torch.compile, one CUDA graph a step"] = make(mode="default", graph=True)
    torch.backends.cudnn.allow_tf32 = True  # what a graph records stays so
    variants[f"{name}, one CUDA graph a step, TF32"] = make(graph=True)
    torch.backends.cudnn.allow_tf32 = False
    return variants


def tensorflow_variants(size: int, batch: int) -> dict[str, Run]:
    """One `tf.function` that takes all steps of a call, and one that takes a single step."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    layers = [tf.keras.layers.Conv2D(b, 5, padding="same", activation="relu") for b in WIDTHS[1:]]
    model = tf.keras.Sequential([tf.keras.Input((size, size, 1)), *layers])
    pictures = tf.random.uniform((batch, size, size, 1))
    optimizer = tf.keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)

    def step() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(pictures, training=True) - 0.5 * pictures) ** 2)
        slopes = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(slopes, model.trainable_variables, strict=True))

    single = tf.function(step)

    @tf.function
    def loop(steps: tf.Tensor) -> None:
        for _ in tf.range(steps):
            step()

    def run_single(steps: int) -> None:
        for _ in range(steps):
            single()

    name = f"TensorFlow {tf.__version__}"
    return {
        f"{name}, tf.function": run_single,
        f"{name}, tf.function with the loop inside": lambda steps: loop(tf.constant(steps)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=["torch", "tensorflow"])
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    options = parser.parse_args()
    make = torch_variants if options.library == "torch" else tensorflow_variants
    variants = make(options.size, options.batch)
    compile_s: dict[str, float] = {}
    for name, run in variants.items():
        began = time.perf_counter()
        run(1)
        compile_s[name] = time.perf_counter() - began
    print(json.dumps(compile_s), flush=True)
    for line in sys.stdin:
        name, steps = line.rsplit(maxsplit=1)
        began = time.perf_counter()
        variants[name](int(steps))
        print((time.perf_counter() - began) / int(steps) * 1e3, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads may stop
    main()
