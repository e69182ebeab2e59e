"""What a mask is: identity, printing, and errors that say what to do. No weights are needed, only shapes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import TOYS, concat_toy, flatten_toy

from maskprune import Group, Groups, Slice, init_network
from maskprune.masks.groups import check_groups, leaf_path, leaves_by_path


ODD_ROLE: Any = "read"


def layer(name: str = "conv1", size: int = 3, **changes) -> Group:
    labels = tuple(range(size))
    return dataclasses.replace(Group(name, size, (Slice(f"{name}/kernel", 1, labels, "out"),)), **changes)


@pytest.mark.parametrize("make", TOYS)
def test_equal_groups_are_one_key(make):
    one, other = make().groups, make().groups
    assert one is not other
    assert one == other
    assert hash(one) == hash(other)
    assert {one: "found"}[other] == "found"


def test_another_label_is_another_value():
    pieces = [Slice("conv1/kernel", 0, labels, "out") for labels in [(0, 1), (1, 0), (0, -1)]]
    assert len({Groups((Group("conv1", 2, (piece,)),)) for piece in pieces}) == 3


@pytest.mark.parametrize("make", TOYS)
def test_is_static(make):
    """Groups ride in the treedef of a network: never a leaf, never traced."""
    toy = make()
    network = init_network(toy.params, toy.groups)
    leaves, structure = jax.tree.flatten(network)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert len(leaves) == len(jax.tree.leaves(toy.params)) + 2 * len(toy.groups)
    assert structure.unflatten(leaves).groups is network.groups
    assert jax.jit(lambda n: n)(network).groups == toy.groups


def test_iteration_access_and_names():
    groups = concat_toy().groups
    assert [group.name for group in groups] == list(groups.names) == ["left", "right"]
    assert [group.size for group in groups] == [3, 2]
    assert len(groups) == 2
    assert groups["right"] is groups.groups[1]


def test_roles_split_the_slices():
    for group in flatten_toy().groups:
        assert set(group.with_role("out")) | set(group.with_role("in")) == set(group.slices)
        assert {piece.leaf for piece in group.with_role("out")} == {"conv/kernel", "conv/bias"}


def test_two_groups_meet_on_one_axis():
    found = concat_toy().groups.of_leaf("head/kernel")
    assert [(group.name, piece.axis, piece.role) for group, piece in found] == [("left", 0, "in"), ("right", 0, "in")]
    first, second = (np.array(piece.labels) >= 0 for _, piece in found)
    assert not (first & second).any()
    assert (first | second).sum() == 5
    assert concat_toy().groups.of_leaf("head/bias") == []


def test_prints_as_a_table():
    text = str(flatten_toy().groups)
    header, conv, kept = text.splitlines()
    assert header.split() == ["group", "masks", "touches"]
    assert conv.split()[:2] == ["conv", "4"]
    assert all(
        leaf in conv for leaf in ("conv/kernel[axis 3, out]", "conv/bias[axis 0, out]", "dense/kernel[axis 0, in]")
    )
    assert kept.split(maxsplit=2) == ["dense", "kept", "the output"]
    assert conv.index("conv/kernel") == header.index("touches") == kept.index("the output")


def test_protected_channels_keep_their_reason():
    assert flatten_toy().groups.refused == {"dense": "the output"}


def test_paths_of_leaves_in_nested_containers():
    tree = {"b": [jnp.zeros(1), {"c": jnp.ones(2)}], "a": jnp.zeros(3)}
    assert {path: leaf.size for path, leaf in leaves_by_path(tree).items()} == {"a": 3, "b/0": 1, "b/1/c": 2}
    assert leaf_path(()) == ""


@pytest.mark.parametrize("wanted", ["conv2", "Conv1", "nonsense"])
def test_unknown_group_names_what_exists(wanted):
    with pytest.raises(KeyError, match=rf"no group `{wanted}`.*The groups are conv1, conv3\."):
        _ = Groups((layer("conv1"), layer("conv3")))[wanted]


def test_unknown_group_suggests_the_nearest():
    with pytest.raises(KeyError, match="did you mean `encoder`"):
        _ = Groups((layer("encoder"), layer("head")))["encodr"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda: Groups((layer(), layer())), r"names \('conv1', 'conv1'\).*own name"),
        (lambda: Groups((layer(size=0),)), r"`conv1` has size 0: .*at least one mask"),
        (lambda: Groups((layer(slices=(Slice("conv2/kernel", 0, (0, 1, 2), "in"),)),)), "`conv1` has no `out` slice"),
        (lambda: Groups((layer(slices=()),)), "`conv1` has no `out` slice"),
        (lambda: Groups((layer(slices=(Slice("w", 0, (0, 3), "out"),)),)), r"3 masks, but its slice of `w`.*-1 to 2"),
        (lambda: Groups((layer(slices=(Slice("w", 0, (0, -2), "out"),)),)), r"slice of `w`.*-1 to 2"),
        (lambda: Groups((layer(slices=(Slice("w", 0, (0,), ODD_ROLE),)),)), "`role` is 'read': use"),
    ],
)
def test_refuses_groups_that_make_no_sense(groups, message):
    with pytest.raises(ValueError, match=message):
        groups()


def test_missing_leaf_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"`conv1` names the leaf `conv1/kernel`.*did you mean `conv1/kernels`.*are"):
        check_groups(Groups((layer(),)), {"conv1": {"kernels": jnp.zeros((2, 3))}})


@pytest.mark.parametrize("shape", [(2, 4), (3,), (3, 2, 1), ()])
def test_misfit_names_leaf_axis_and_shape(shape):
    with pytest.raises(ValueError) as caught:
        check_groups(Groups((layer(),)), {"conv1": {"kernel": jnp.zeros(shape)}})
    for part in ("`conv1/kernel`", "3 positions", "axis 1", str(shape)):
        assert part in str(caught.value)


def test_negative_axis_is_refused():
    with pytest.raises(ValueError, match="`axis` is -1"):
        Slice("w", -1, (0, 1, 2), "out")


@pytest.mark.parametrize("make", TOYS)
def test_toys_fit_their_parameters(make):
    toy = make()
    check_groups(toy.groups, toy.params)
