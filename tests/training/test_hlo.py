# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading compiled programs."""

from cropvlm_jax.training import hlo

NAME = '{op_name="update/transpose(jvp())/psum"}'
HLO = """HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

%known (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(30)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%unknown (p: (s32[], f32[8])) -> pred[] {
  ROOT %or = pred[]{:T(512)} all-reduce(%x), channel_id=1, to_apply=%sum
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = (f32[4,8]{1,0:T(8,128)S(1)}, /*index=1*/bf16[8]{0:T(128)}) all-reduce(%x, %y), {NAME}
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%t), condition=%known, body=%inner, metadata={op_name="a/while"}
  %g = f32[2,8]{1,0} fusion(%x), kind=kCustom, calls=%gather
}

%gather (p: f32[1,8]) -> f32[2,8] {
  ROOT %a = f32[2,8]{1,0:T(8,128)} all-gather(%p), dimensions={0}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%unknown, body=%outer
  %s = f32[8]{0} all-reduce-start(%x), to_apply=%sum
  %d = f32[8]{0} all-reduce-done(%s)
  %gs = (f32[4]{0}, f32[8]{0}) all-gather-start(%y), dimensions={0}
  %gd = f32[8]{0} all-gather-done(%gs)
  ROOT %f = f32[8]{0} add(%d, %d)
}
""".replace("{NAME}", NAME)


def test_collectives_count_as_often_as_their_loops_run():
    assert hlo.collectives(HLO) == {
        "all-gather": {"bytes": 64 + 32, "count": 2, "gradient_bytes": 0},
        "all-reduce": {
            "bytes": 30 * (128 + 16) + 1 + 32,
            "count": 32,
            "gradient_bytes": 30 * (128 + 16),
        },
    }
