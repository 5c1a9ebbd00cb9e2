"""Reading optimised HLO: how often what runs, and how many bytes it moves."""

import jax
import jax.numpy as jnp
import pytest

from unils_jax.benchmarks.ahead.hlo import Program, buffers

TEXT = """HloModule jit_step, is_scheduled=true

%fused (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %inner = f32[4,8]{1,0} negate(%p)
}

%body (t: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %t = (s32[], f32[4,8]{1,0}) parameter(0)
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%t), index=1
  %f = f32[4,8]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  %gather-start = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(%f), dimensions={0}
  %gather = f32[32,8]{1,0:T(8,128)} all-gather-done(%gather-start)
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%f, %f)
}

%cond (t: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0:T(8,128)} parameter(0)
  %c = bf16[4,130]{1,0:T(8,128)(2,1)} copy(%a), metadata={op_name="jit(step)/prior/blocks"}
  %w = (s32[], f32[4,8]{1,0}) while(%a), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %r = f32[4,8]{1,0} all-reduce(%a), to_apply=%sum, backend_config={"estimated_cycles":"7"}
  ROOT %y = f32[4,8]{1,0:T(8,128)S(1)} negate(%r)
}
"""


def test_a_loop_s_body_counts_as_often_as_it_runs():
    program = Program(TEXT)
    assert program.cycles() == 6 * 100 + 7
    gather, reduce = program.collectives()
    assert (gather.kind, gather.count, gather.size, gather.overlapping) == ("all-gather", 6, 6 * 32 * 8 * 4, 6)
    assert (reduce.kind, reduce.count, reduce.size, reduce.overlapping) == ("all-reduce", 1, 128, 0)
    assert reduce.sent() == 256 and gather.sent() == gather.size


CONDITION = """%cond (t: (s32[], f32[4,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(24)
  %t = (s32[]{:T(128)}, f32[4,8]{1,0}) parameter(0)
  %step = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %less = pred[]{:T(512)} compare(%step, %bound), direction=LT
}
"""


def test_a_loop_whose_count_is_only_in_its_condition_counts_by_it():
    silent = TEXT.replace(', backend_config={"known_trip_count":{"n":"6"}}', "")
    assert Program(silent).cycles() == 100 + 7  # nothing says how often it runs
    start, end = silent.index("%cond ("), silent.index("ENTRY")
    assert Program(silent[:start] + CONDITION + silent[end:]).cycles() == 24 * 100 + 7
    two = CONDITION.replace("  %t =", "  %other = s32[] constant(3)\n  %t =")
    assert Program(silent[:start] + two + silent[end:]).cycles() == 100 + 7


def test_copies_come_with_their_scope_and_padding_with_its_shape():
    program = Program(TEXT)
    (copy,) = program.copies()
    assert (copy.size, copy.times, copy.scope) == (4 * 130 * 2, 1, "jit(step)/prior/blocks")
    (buffer,) = copy.buffers
    assert str(buffer) == "bf16[4,130]" and buffer.padded == 8 * 256 * 2
    share, worst = program.padding()
    assert 0.5 < share < 1 and worst[0] == "f32[4,8]"


def test_what_stays_on_the_chip_passes_no_memory():
    written = {"c": 8 * 256 * 2, "f": 6 * 8 * 128 * 4, "gather-start": 6 * (128 + 1024), "r": 128}
    assert Program(TEXT).traffic() == 2 * sum(written.values())


def test_shapes_of_tuples_and_scalars_are_read():
    assert [buffer.size for buffer in buffers("(s32[], bf16[2,3]{1,0}, pred[7]{0})")] == [4, 12, 7]


@pytest.mark.parametrize("trips", [3, 5])
def test_a_real_program_is_read(trips):
    def scanned(x):
        return jax.lax.scan(lambda y, _: (jnp.sin(y @ y), None), x, None, length=trips)[0]

    text = jax.jit(scanned).lower(jnp.zeros((8, 8))).compile().as_text()
    products = [one for one in Program(text).instructions if one.operation in ("dot", "custom-call", "fusion")]
    assert sum(one.times for one in products if "dot" in one.name or one.operation == "dot") % trips == 0
    assert Program(text).collectives() == [] and Program(text).cycles() == 0
