# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the axes of weights mean, so that `parallel` can say which devices share them.

A table's rows are tried in order: a pattern that is found in the path of a weight inside its model,
and the meaning of each axis of that weight, None where it is never split. Weights of stacked layers
lead with the layer axis. What no row fits stays whole on every device, as norms do.
"""

LogicalAxes = tuple[tuple[str, tuple[str | None, ...]], ...]

# Layers of decoders and of vision towers, whose linear layers have the same names, and adapters.
LAYERS: LogicalAxes = (
    (r"layers/[qkv]/kernel", (None, "embed", "heads")),
    (r"layers/[qkv]/bias", (None, "heads")),
    (r"layers/o/kernel", (None, "heads", "embed")),
    (r"layers/(gate|up|fc1)/kernel", (None, "embed", "mlp")),
    (r"layers/(gate|up|fc1)/bias", (None, "mlp")),
    (r"layers/(down|fc2)/kernel", (None, "mlp", "embed")),
    (r"layers/(q|k|v|gate|up|fc1)/lora_a", (None, "embed", None)),
    (r"layers/o/lora_a", (None, "heads", "rank")),
    (r"layers/(down|fc2)/lora_a", (None, "mlp", "rank")),
    (r"layers/[qkv]/lora_b", (None, "rank", "heads")),
    (r"layers/(gate|up|fc1)/lora_b", (None, "rank", "mlp")),
    (r"layers/(o|down|fc2)/lora_b", (None, None, "embed")),
)
# Of a decoder named `text`, and of a tower.
EMBEDDINGS: LogicalAxes = (
    (r"text/embedding/embedding|text/head", ("vocab", "embed")),
    (r"position_embedding/embedding|patch_embedding/kernel", (None, "embed")),
)
# Of a `projector` of two linear layers between tower and decoder.
PROJECTOR: LogicalAxes = (
    (r"projector/fc1/kernel", ("embed", "mlp")),
    (r"projector/fc1/bias", ("mlp",)),
    (r"projector/fc2/kernel", ("mlp", "embed")),
)
