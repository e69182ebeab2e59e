"""One strict setting for every test: a fixed key, and shapes that never match by accident."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest


# Experiments share a module, which Python finds beside the one that is started.
sys.path.append(str(Path(__file__).parents[1] / "experiments"))
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(20181126)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20181126)
