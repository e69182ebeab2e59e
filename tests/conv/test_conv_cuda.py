"""The CUDA kernels: their sums on the CPU's threads, where shared memory begins as NaN; on a GPU, all of it."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune import conv2d
from maskprune.conv import cuda


EMULATOR = Path(__file__).parents[1] / "support" / "cuda_on_threads.cc"
COMPILER = shutil.which("g++")
ARRAYS = {"forward": 4, "backward": 6}
LAYERS = [
    # members, pictures, height, width, channels in and out, sides of the kernel
    (1, 1, 5, 6, 1, 1, 1, 1),
    (1, 2, 9, 8, 1, 5, 5, 5),
    (2, 2, 17, 70, 5, 5, 5, 5),
    (1, 1, 33, 130, 5, 1, 5, 5),
    (2, 1, 10, 7, 7, 12, 3, 5),
    (1, 2, 13, 66, 3, 6, 9, 9),
    (1, 1, 4, 90, 2, 2, 1, 41),
    (1, 1, 50, 5, 2, 3, 41, 1),
    (1, 1, 12, 12, 40, 4, 3, 3),
    (3, 5, 40, 64, 2, 3, 3, 3),
]
# Large tiles where one block is thought enough, small ones where many are wanted; the usual layers in both.
CASES = [*((layer, 1) for layer in LAYERS[:7]), *((layer, 256) for layer in LAYERS[1:4] + LAYERS[7:])]
LONG = [(LAYERS[-1], 256), *((layer, 1) for layer in LAYERS[3:7:2])]  # like others, and slow to compile


def run_on_threads(folder, launch: cuda.Launch, *arrays: np.ndarray) -> None:
    """Compiles the kernels for the CPU and runs a launch; the arrays are what a kernel's arguments point to."""
    given = ", ".join(f"arrays[{n}]" for n in range(ARRAYS[launch.name]))
    defined = {**launch.constants, "SHARED": launch.shared, "CALL": f"{launch.name}({given})"}
    defined["KERNELS"] = f'"{cuda.SOURCE}"'
    library = folder / f"{launch.name}.so"
    options = [f"-D{name}={value}" for name, value in defined.items()]
    command = [COMPILER, "-std=c++20", "-O0", "-w", "-shared", "-fPIC", "-pthread", "-o", library, *options]
    subprocess.run([*command, str(EMULATOR)], check=True)
    pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    ctypes.CDLL(str(library)).run(launch.blocks, pointers)


def planar(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(cuda.PLANAR))


def usual(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 1, 3, 4, 2)


def numbers(rng, layer):
    """Inputs, kernel, bias and what is found behind the layer, all of them arrays of members."""
    members, pictures, height, width, before, after, tall, wide = layer
    x = rng.normal(size=(members, pictures, height, width, before)).astype(np.float32)
    kernel = rng.normal(size=(members, tall, wide, before, after)).astype(np.float32)
    bias = rng.normal(size=(members, after)).astype(np.float32)
    g = rng.normal(size=(members, pictures, height, width, after)).astype(np.float32)
    return x, kernel, bias, g


def expected_layer(x, kernel, bias, *, relu):
    one = lambda x, k, b: conv2d(x, k, b, relu=relu, way="xla")
    return jax.vmap(one)(x, kernel, bias)


@pytest.mark.rotating
@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs g++ and its threads")
@pytest.mark.parametrize(
    ("layer", "blocks"), [pytest.param(*each, marks=[pytest.mark.slow] * (each in LONG)) for each in CASES], ids=str
)
def test_both_calls_on_threads(rng, tmp_path, monkeypatch, layer, blocks):
    monkeypatch.setattr(cuda, "BLOCKS", blocks)
    relu = sum(layer) % 2 == 0
    x, kernel, bias, g = numbers(rng, layer)
    shape = cuda._Layer.of(x, kernel)
    y = np.full((*x.shape[:2], shape.O, *x.shape[2:4]), np.nan, np.float32)
    run_on_threads(tmp_path, cuda.forward_launch(shape, relu), planar(x), kernel, bias, y)
    expected, pull = jax.vjp(lambda *given: expected_layer(*given, relu=relu), x, kernel, bias)
    np.testing.assert_allclose(usual(y), expected, rtol=1e-4, atol=1e-4)
    launch, parts = cuda.backward_launch(shape, relu, True)
    part = np.full((shape.P, parts, kernel[0].size + shape.O), np.nan, np.float32)
    dx = np.full_like(planar(x), np.nan)
    run_on_threads(tmp_path, launch, planar(x), kernel, y, planar(g), part, dx)
    total = part.sum(1)
    found = usual(dx), total[:, : kernel[0].size].reshape(kernel.shape), total[:, kernel[0].size :]
    for one, other in zip(found, pull(jnp.asarray(g)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-3)


def test_a_kernel_that_does_not_fit_is_refused():
    assert all(cuda.fits(sides) for sides in [(1, 1), (5, 5), (11, 11), (1, 101), (101, 1)])
    assert not cuda.fits((301, 301))
