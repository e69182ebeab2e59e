"""JAX's internals are read in one file, which says so when it meets a JAX that it does not know."""

import ast
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from maskprune.masks.jaxpr import internals


PACKAGE = Path(internals.__file__).parents[2]
DEFINES_PRIMITIVES = {"conv/native.py"}
INSIDE = ("jax.core", "jax.extend", "jax._src", "jax.interpreters")


def equation(name, **params):
    return SimpleNamespace(primitive=SimpleNamespace(name=name), params=params)


def test_a_primitive_that_is_described_otherwise_ends_in_a_sentence():
    with pytest.raises(internals.UnknownJaxError, match=r"describes `transpose` by order, without permutation.*0\.10"):
        internals.parameters(equation("transpose", order=(1, 0)))


def test_a_scan_is_read_in_the_words_of_both_releases():
    def function(a, rows):
        return jax.lax.scan(lambda carry, row: ((carry[0] * a, carry[1] + row), row), (1.0, 2.0), rows)

    (scan,) = jax.make_jaxpr(function)(2.0, jnp.ones(3)).eqns
    counts = [internals.parameters(scan)[name] for name in ("num_consts", "num_carry")]
    assert counts == [1, 2]
    ft_in = SimpleNamespace(unpack=lambda: ([None], [None, None], [None]))
    rest = {name: scan.params[name] for name in ("jaxpr", "length", "reverse", "unroll")}
    later = internals.parameters(equation("scan", ft_in=ft_in, **rest))
    assert [later[name] for name in ("num_consts", "num_carry")] == counts


def inside_jax(source):
    """The imports and attributes of a source that reach into JAX."""
    for node in ast.walk(ast.parse(source)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jax":
            names.append(f"jax.{node.attr}")
        yield from (
            name for name in names if name.startswith(("jax.core", "jax.extend", "jax._src", "jax.interpreters"))
        )


@pytest.mark.parametrize(
    "source", ["import jax.core", "from jax.extend.core import Var", "import jax\njax.core.Tracer"]
)
def test_a_reach_into_jax_is_seen(source):
    assert list(inside_jax(source))


def test_only_one_file_reaches_into_jax():
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "internals.py"]
    names = {path.relative_to(PACKAGE).as_posix(): list(inside_jax(path.read_text("utf-8"))) for path in files}
    assert {name for name, found in names.items() if found} - DEFINES_PRIMITIVES == set()
