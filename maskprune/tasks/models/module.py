"""The FCN as an ordinary Flax NNX module, for those who want to go on in Flax. The only file that knows Flax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from maskprune.masks.network import Params
from maskprune.tasks.models.fcn import layer_names


class FCNModule(nnx.Module):
    """Convolutions with ReLU after every one, with Flax's own `nnx.Conv` layers named as in the parameters."""

    def __init__(self, widths: list[int], kernels: list[int], *, rngs: nnx.Rngs) -> None:
        """Args: `widths`: channels from the input to the output; `kernels`: one odd size for each layer."""
        self.names = tuple(layer_names(len(kernels)))
        for name, size, before, after in zip(self.names, kernels, widths, widths[1:], strict=False):
            setattr(self, name, nnx.Conv(before, after, (size, size), padding="SAME", precision="highest", rngs=rngs))

    def __call__(self, pictures: jax.Array) -> jax.Array:
        """float[N, H, W, I] to float[N, H, W, O]."""
        for name in self.names:
            pictures = nnx.relu(getattr(self, name)(pictures))
        return pictures


def to_module(params: Params) -> FCNModule:
    """An NNX module with these weights, full or compacted."""
    kernels = [params[name]["kernel"].shape for name in layer_names(len(params))]
    widths = [kernels[0][2], *(shape[3] for shape in kernels)]
    module = FCNModule(widths, [shape[0] for shape in kernels], rngs=nnx.Rngs(0))
    nnx.update(
        module, nnx.State({name: {k: nnx.Param(jnp.asarray(v)) for k, v in p.items()} for name, p in params.items()})
    )
    return module


def from_module(module: nnx.Module) -> Params:
    """The parameters of an `FCNModule` as the plain dictionaries that `FCN.apply` takes."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))
