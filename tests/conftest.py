"""One strict setting for every test: a fixed key, and shapes that never match by accident."""

import jax
import numpy as np
import pytest


jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(20181126)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20181126)
