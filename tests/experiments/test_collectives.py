"""The reader of compiled programs, against programs whose traffic is known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from experiments._collectives import Collective, collectives, ring_bytes


def compiled(function, mesh, spec, shape, out=None):
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=spec, out_specs=spec if out is None else out, check_vma=False
    )
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile()


def test_bytes_groups_and_trip_counts():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def program(x):  # [2, 3] on each device
        x = jax.lax.fori_loop(
            0, 7, lambda i, y: jax.lax.fori_loop(0, 3, lambda j, z: jax.lax.psum(jnp.sin(z), "b"), y), x
        )
        gathered = jax.lax.all_gather(x, "a")  # [4, 2, 3]
        return jax.lax.ppermute(x, "a", [(i, (i + 1) % 4) for i in range(4)]) + gathered.sum(0)

    found = collectives(compiled(program, mesh, PartitionSpec("a", "b"), (8, 6)))
    assert sorted(found) == [
        Collective("all-gather", 96, 1, 4),
        Collective("all-reduce", 24, 21, 2),
        Collective("collective-permute", 24, 1, 8),
    ]
    assert sum(map(ring_bytes, found)) == pytest.approx(0.75 * 96 + 21 * 24 + 24)


def test_one_device_says_nothing():
    mesh = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Auto,))
    program = compiled(lambda x: jax.lax.psum(x, "a"), mesh, PartitionSpec("a"), (4,))
    assert collectives(program) == ()


def test_a_loop_of_unknown_length_is_refused():
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))

    def program(x):
        return jax.lax.while_loop(lambda y: jnp.max(y) < 10.0, lambda y: jax.lax.psum(y + 1.0, "a"), x)

    with pytest.raises(ValueError, match="trip count"):
        collectives(compiled(program, mesh, PartitionSpec(), (4,)))


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[4,2]<=[8]", 2),
        ("mesh['x'=4,'y'=2] {'y'}", 2),
        ("mesh['x'=8] {'x':(2)4}", 4),
        ("{}", 8),
    ],
)
def test_every_way_of_writing_groups(groups, size):
    text = f"""HloModule m, num_partitions=8

ENTRY %main (p: bf16[6]) -> bf16[6] {{
  %p = bf16[6]{{0}} parameter(0)
  ROOT %r = (bf16[6]{{0}}, f32[2]{{0}}) all-reduce-start(%p), replica_groups={groups}, to_apply=%add
}}
"""
    assert collectives(text) == (Collective("all-reduce", 20, 1, size),)
