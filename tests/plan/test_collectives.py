"""What devices send, read from a program's text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from polopt.errors import PoloptError
from polopt.plan.collectives import collectives

# A loop of seven whose body gathers, one that counts to three and gathers behind two fusions, a
# started sum, and a parts-wise sum behind a fusion's call.
TEXT = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,16]{1,0})->f32[]}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[4,128])) -> (s32[], bf16[4,128]) {
  %p = (s32[], bf16[4,128]{1,0}) parameter(0)
  %w = bf16[4,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %g = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather(%w), replica_groups=[2,4]<=[8]
  ROOT %t = (s32[], bf16[4,128]{1,0}) tuple(%p, %w)
}

%count (p: (s32[])) -> pred[] {
  %n = s32[]{:T(128)} constant(3), metadata={op_name="n"}
  %p = (s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%behind (w: bf16[4,128]) -> bf16[8,128] {
  %w = bf16[4,128]{1,0} parameter(0)
  ROOT %g = bf16[8,128]{1,0} all-gather(%w), channel_id=5, replica_groups=[4,2]<=[8]
}

%twice (p: (s32[])) -> (s32[]) {
  %p = (s32[]) parameter(0)
  %a = bf16[8,128]{1,0} fusion(%p), kind=kCustom, calls=%behind
  %b = bf16[8,128]{1,0} fusion(%a), kind=kCustom, calls=%behind.clone
  ROOT %t = (s32[]) tuple(%p)
}

%behind.clone (w: bf16[4,128]) -> bf16[8,128] {
  %w = bf16[4,128]{1,0} parameter(0)
  ROOT %g = bf16[8,128]{1,0} all-gather(%w), channel_id=5, replica_groups=[4,2]<=[8]
}

%inner (x: f32[64]) -> f32[16] {
  %x = f32[64]{0} parameter(0)
  ROOT %r = f32[16]{0} reduce-scatter(%x), replica_groups={{0,1,2,3},{4,5,6,7}}
}

ENTRY %main (q: f32[8,16]) -> f32[] {
  %q = f32[8,16]{1,0} parameter(0)
  %l = (s32[]) while(%q), body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %s = f32[8,16]{1,0} all-reduce-start(%q), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
  %d = f32[8,16]{1,0} all-reduce-done(%s)
  %f = f32[16]{0} fusion(%d), kind=kLoop, calls=%inner
  %h = (f32[4]{0}, f32[8]{0}) all-gather-start(%f), replica_groups=[4,2]<=[8], dimensions={0}
  %v = (s32[]) while(%q), condition=%count, body=%twice
  %m = f32[6]{0} all-to-all(%f), replica_groups=mesh['a'=2,'b'=3] {'b'}, dimensions={0}
  %y = f32[2]{0} all-reduce(%q), channel_id=1, replica_groups={{0,1}}, to_apply=%sum
  %z = f32[2]{0} all-reduce(%q), channel_id=1, replica_groups={{0,1}}, to_apply=%sum
  %n = f32[8]{0} collective-permute(%f), source_target_pairs={{0,1},{1,0}}
  %k = f32[8]{0} all-to-all(%f), replica_groups=mesh['a'=2,'b'=8] {'a','b':(1)2}, dimensions={0}
  ROOT %o = f32[] constant(0)
}
"""


def test_a_text_written_by_hand():
    found = {c.kind: (c.count, c.bytes) for c in collectives(TEXT)}
    # Of 4 devices each sends 3 of the 4 parts of 16 x 128 x 2 bytes, seven times; of 2 devices
    # each sends its half of 8 x 4 bytes, and of 8 x 128 x 2 three times.
    gathered = 7 * 3 * (16 * 128 * 2 // 4) + 4 * 4 + 3 * (8 * 128 * 2 // 2)
    # A ring sums and gathers: 7 of 8 parts of 8 x 16 x 4 bytes, twice; a half of 8 bytes, twice,
    # by either of two operations that share a channel.
    assert found == {
        "all-gather": (8 + 3, gathered),
        "all-reduce": (3, 2 * 7 * (8 * 16 * 4 // 8) + 2 * 8),
        "reduce-scatter": (1, 3 * 16 * 4),
        # Of three devices each keeps a third; of 2 x 2, where "b" is cut in two and 4, a quarter.
        "all-to-all": (2, 6 * 4 * 2 // 3 + 8 * 4 * 3 // 4),
        "collective-permute": (1, 8 * 4),
    }


def test_a_program_of_the_compiler():
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    cut, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())

    def f(w, x):
        def step(x, _):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w * 2, whole)), None

        return jax.lax.scan(step, x, None, length=5)[0].sum()

    w = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=cut)
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=cut)
    compiled = jax.jit(f, out_shardings=whole).lower(w, x).compile()
    found = {c.kind: c for c in collectives(compiled.as_text())}
    # The weights are gathered in every step, or once before the loop.
    assert found["all-gather"].count in (1, 5)
    assert found["all-gather"].bytes == found["all-gather"].count * 64 * 64 * 4 * 7 // 8
    assert found["all-reduce"].bytes == 2 * 4 * 7 // 8  # one sum of one number


def test_a_program_of_one_device_sends_nothing():
    compiled = jax.jit(jnp.sum).lower(jax.ShapeDtypeStruct((8,), jnp.float32)).compile()
    assert collectives(compiled.as_text()) == ()


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,1,2,3}}", 4),
        ("[4,2]<=[8]", 2),
        ("mesh['x'=2,'y'=4] {'y'}", 4),
        ("mesh['axis_0'=1,'axis_1'=2,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_1'}", 2),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([8]) {'axis_0','axis_1':(1)2}", 4),
    ],
)
def test_devices_as_compilers_write_them(groups, members):
    """A gathered array of 64 numbers: a device gets all but its own part."""
    line = f"  %g = f32[64]{{0}} all-gather(%w), channel_id=1, replica_groups={groups}, x={{0}}"
    (sent,) = collectives(f"ENTRY %main (w: f32[]) -> f32[] {{\n{line}\n}}\n")
    assert sent.bytes == 256 * (members - 1) // members


def test_what_compilers_never_wrote_is_no_silence():
    line = "  %g = f32[64]{0} all-gather(%w), replica_groups=torus(2)"
    with pytest.raises(PoloptError, match=r"as it did not before: replica_groups=torus"):
        collectives(f"ENTRY %main (w: f32[]) -> f32[] {{\n{line}\n}}\n")
