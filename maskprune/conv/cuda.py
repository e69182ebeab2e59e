"""The native way on CUDA: how a layer becomes a launch of the kernels in `_kernels.cu`.

A kernel is compiled when a layer is, by NVRTC, the compiler that comes with JAX's CUDA packages, for exactly that
layer: all sizes are constants. Its machine code travels inside the compiled JAX program, so a cached program needs no
compiler. `native.py` says what the two calls mean and how they are derived; here is only how they are cut into blocks
of threads.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import util
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from maskprune.conv.planar import PLANAR, Layout, call


TARGET = "maskprune_launch"
SOURCE = Path(__file__).with_name("_kernels.cu")

# Of a block of threads: how many, how many side by side, the columns of a tile, numbers in shared memory.
THREADS, ACROSS, COLUMNS, SHARED = 128, 16, 64, 12 * 1024
DOWN = THREADS // ACROSS
HIGH = 8  # rows of a tile for the kernel's gradient, at most
CHANNELS = 5  # output channels at a time, at most
BLOCKS = 256  # so many keep a large device busy

Constants = dict[str, int]


class Launch(NamedTuple):
    """A kernel, what its source is compiled with, and its size.

    Attributes:
        name: In the source.
        constants: What the names in capitals stand for.
        blocks: Of `THREADS` threads.
        shared: Numbers of shared memory in each.
    """

    name: str
    constants: Constants
    blocks: int
    shared: int


class _Layer(NamedTuple):
    """P members, N pictures each, H x W pixels, I channels in, O out, a kernel of so many taps."""

    P: int
    N: int
    H: int
    W: int
    I: int
    O: int
    tall: int
    wide: int

    @classmethod
    def of(cls, x: Any, kernel: Any) -> _Layer:
        members, pictures, height, width, inputs = x.shape
        return cls(members, pictures, height, width, inputs, kernel.shape[4], kernel.shape[1], kernel.shape[2])

    @property
    def taps(self) -> int:
        """Of a row of the kernel at a time."""
        return min(self.wide, 8)

    @property
    def pieces(self) -> int:
        """Of a row of the kernel."""
        return ceil(self.wide / self.taps)

    @property
    def pitch(self) -> int:
        """From row to row of a tile with its rim."""
        shift = -(self.wide // 2) % 4
        tight = COLUMNS - 4 + (self.pieces - 1) * self.taps + 4 * ceil((self.taps + 3 + shift) / 4)
        return tight if tight % 8 else tight + 4

    @property
    def columns(self) -> int:
        return ceil(self.W / COLUMNS)

    @property
    def constants(self) -> Constants:
        sizes = dict(zip("PNHWIO", self, strict=False))
        return {**sizes, "TALL": self.tall, "WIDE": self.wide}


@cache
def usable() -> bool:
    """Whether the default device is a CUDA device, and the compiler is there."""
    if jax.default_backend() != "gpu":
        return False
    return "cuda" in jax.local_devices()[0].client.platform_version.lower() and load_compiler() is not None


@cache
def fits(sides: tuple[int, int]) -> bool:
    """Whether a kernel of these sides fits a block of threads and its memory."""
    small = _Layer(1, 1, 1, 1, 1, CHANNELS, *sides)
    team = small.tall * small.pieces <= THREADS
    return team and _convolution(small, 1, CHANNELS)[0]["DEPTH"] > 0 and _gradient_shared(small, 1, CHANNELS) <= SHARED


def forward_launch(layer: _Layer, relu: bool) -> Launch:
    chosen, blocks, shared = _convolution(layer, layer.I, layer.O)
    return Launch("forward", layer.constants | chosen | {"RELU": int(relu), "FORWARD": 1}, blocks, shared)


def backward_launch(layer: _Layer, relu: bool, wanted: bool) -> tuple[Launch, int]:
    """Also how many parts of the kernel's gradient there are for each member."""
    chosen, back, shared = _convolution(layer, layer.O, layer.I)
    turn = min(layer.I, CHANNELS) > layer.O
    moving, staying = (layer.O, layer.I) if turn else (layer.I, layer.O)
    channels = min(moving, THREADS // (layer.tall * layer.pieces))
    while _gradient_shared(layer, channels, staying) > SHARED:
        channels -= 1
    others = ceil(moving / channels) * ceil(staying / CHANNELS)
    count = lambda high: layer.N * ceil(layer.H / high) * layer.columns
    high = next((high for high in (HIGH, HIGH // 2) if layer.P * count(high) * others >= BLOCKS), HIGH // 4)
    span = int(np.clip(layer.P * count(high) * others // (16 * BLOCKS), 1, count(high)))
    parts = ceil(count(high) / span)
    back, found = back // layer.P if wanted else 0, parts * others
    chosen |= {"HIGH": high, "SPAN": span, "SLICE": channels, "SWAP": int(turn), "BACK": back, "FOUND": found}
    shared = max(_gradient_shared(layer, channels, staying), shared if wanted else 0)
    constants = layer.constants | chosen | {"RELU": int(relu), "FORWARD": 0}
    return Launch("backward", constants, layer.P * (back + found), shared), parts


def _convolution(layer: _Layer, inputs: int, outputs: int) -> tuple[Constants, int, int]:
    """How a convolution from so many channels to so many is cut, into how many blocks, with how much shared memory.

    Where there would be few blocks they do less each: fewer rows, then fewer output channels.
    """
    for most, channels in ((4, CHANNELS), (2, CHANNELS), (1, CHANNELS), (1, 3), (1, 2)):
        tiles = ceil(outputs / channels)
        out = ceil(outputs / tiles)
        rows = min(most, 10 // out)
        weights = layer.tall * layer.pieces * 4 * ceil(layer.taps * out / 4)
        plane = weights + (DOWN * rows + layer.tall - 1) * layer.pitch
        depth = min(inputs, SHARED // plane)
        blocks = layer.P * layer.N * layer.columns * ceil(layer.H / (DOWN * rows)) * tiles
        if depth and (blocks >= BLOCKS or (most == 1 and blocks >= BLOCKS // 4)):
            break
    return {"CHANNELS": channels, "ROWS": rows, "DEPTH": depth}, blocks, depth * plane


def _gradient_shared(layer: _Layer, moving: int, staying: int) -> int:
    """Numbers of shared memory: tiles of both sides, or afterwards what the threads found."""
    stay = ceil(staying / ceil(staying / CHANNELS))
    tiles = moving * (HIGH + layer.tall) * layer.pitch + stay * HIGH * COLUMNS
    return max(tiles, layer.taps * stay * THREADS)


def register(library: ctypes.CDLL) -> None:
    """Makes the call known to JAX. The library says that it may be part of a CUDA graph."""
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(getattr(library, TARGET)), platform="CUDA")


# The two calls, as `native.py` describes them.


def run_layer(x: jax.Array, kernel: jax.Array, bias: jax.Array, *, relu: bool) -> jax.Array:
    layer = _Layer.of(x, kernel)
    made = [((*x.shape[:4], layer.O), PLANAR)]
    return _start(forward_launch(layer, relu), made, (x, PLANAR), (kernel, None), (bias, None))[0]


def run_backward(
    x: jax.Array, kernel: jax.Array, y: jax.Array, g: jax.Array, *, relu: bool, wanted: bool
) -> list[jax.Array]:
    layer = _Layer.of(x, kernel)
    launch, parts = backward_launch(layer, relu, wanted)
    weights = kernel[0].size
    made = [((layer.P, parts, weights + layer.O), None), (x.shape, PLANAR) if wanted else ((0,), None)]
    part, dx = _start(launch, made, (x, PLANAR), (kernel, None), (y, PLANAR), (g, PLANAR))
    total = part.sum(axis=1)
    found = [total[:, :weights].reshape(kernel.shape), total[:, weights:]]
    return [*found, dx] if wanted else found


def _start(launch: Launch, made: Sequence[tuple[tuple[int, ...], Layout]], *given: tuple[jax.Array, Layout]) -> Any:
    code = compiled(tuple(launch.constants.items()), architecture())
    key = np.int64(int.from_bytes(hashlib.sha256(code).digest()[:8], "little", signed=True))
    sizes = {"blocks": np.int64(launch.blocks), "threads": np.int64(THREADS), "shared": np.int64(4 * launch.shared)}
    return call(TARGET, made, *given, code=code, key=key, name=launch.name, **sizes)


# The compiler.


@cache
def architecture() -> str:
    """Of the first GPU, such as `"sm_90"`."""
    return "sm_" + jax.local_devices(backend="cuda")[0].compute_capability.replace(".", "")


@cache
def compiled(constants: tuple[tuple[str, int], ...], architecture: str) -> bytes:
    """Machine code of `_kernels.cu` with these constants.

    Raises:
        RuntimeError: NVRTC is missing or does not compile it.
    """
    nvrtc = load_compiler()
    if nvrtc is None:
        raise RuntimeError("NVRTC was not found: `pip install` JAX with its CUDA packages, or take another `way`.")
    options = [f"-D{name}={value}" for name, value in constants] + ["-std=c++17", f"-arch={architecture}"]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.read_bytes(), SOURCE.name.encode(), 0, None, None)
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
    kind = "ProgramLog" if failed else "CUBIN"
    getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    found = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{kind}")(program, found)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(f"NVRTC does not compile {SOURCE.name} with {' '.join(options)}:\n{found.value.decode()}")
    return found.raw


@cache
def load_compiler() -> ctypes.CDLL | None:
    """NVRTC: from NVIDIA's Python packages, else from the system."""
    spec = util.find_spec("nvidia")
    folders = (spec.submodule_search_locations if spec else None) or []
    packaged = sorted(str(path) for folder in folders for path in Path(folder).rglob("libnvrtc.so.*"))
    for name in [*reversed(packaged), "libnvrtc.so.13", "libnvrtc.so.12"]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
