# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (LoRA, arXiv 2106.09685) beside the linear layers of a model.

An adapted layer keeps its `kernel` and `bias` where they were and has `lora_a` and `lora_b` beside
them, so the frozen part of an adapted model has the very structure of the plain model:

    adapted = lora.add(model, lora.LoRAConfig(), rngs)
    graphdef, trained, frozen = nnx.split(adapted, lora.LoRAParam, ...)
    policy = nnx.merge(graphdef, trained, frozen)
    base = nnx.merge(nnx.graphdef(model), frozen)  # the adapters off, no copy of a weight

Shape letters: I input features, O output features, R rank; stacked layers lead with L.
"""

import dataclasses
import functools
import re
from typing import Annotated, Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cropvlm_jax.models.linear import multiply
from cropvlm_jax.models.scanned import kept
from cropvlm_jax.settings import Range, Settings

LoRAParam = nnx.LoRAParam
Model = TypeVar("Model", bound=nnx.Module)

# The paper's scripts name q, k, v, o, gate, up, down, fc1, fc2 and proj, which select these:
# SigLIP's output projection is called out_proj there, and so is not adapted.
PAPER_TARGETS = r"text\.layers\.(q|k|v|o|gate|up|down)|vision\.layers\.(q|k|v|fc1|fc2)|connector"


@dataclasses.dataclass(frozen=True)
class LoRAConfig(Settings):
    """Which layers are adapted, and how; the defaults are the paper's.

    Attributes:
        rank: R, the rank of the two factors of an adapter; as a flag, 0 trains all weights.
        alpha: the adapter's output is multiplied by alpha / rank; None takes 2 x rank, as the paper
            does, so that another rank alone does not change the factor.
        dropout: share of an adapter's inputs that are dropped in SFT; GRPO drops none.
        targets: regular expression that a linear layer's whole dotted path matches, as in
            `text.layers.q` (all layers of the stack) or `connector`.
    """

    rank: Annotated[int, Range(1, 8192)] = 128
    alpha: Annotated[float, Range(0, 1_000_000, above=True)] | None = None
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.05
    targets: str = PAPER_TARGETS

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(
                f"targets={self.targets!r} is not a regular expression: {error}"
            ) from error

    @property
    def scale(self) -> float:
        """What an adapter's output is multiplied by."""
        return 2.0 if self.alpha is None else self.alpha / self.rank


class DropoutKey(nnx.Variable):
    """The key of an adapted layer's dropout, `[]` or `[L]`."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def low_rank(
    x: Float[Array, "*N I"],
    a: Float[Array, "I R"],
    b: Float[Array, "R O"],
    precision: jax.lax.PrecisionLike,
) -> Float[Array, "*N O"]:
    """The product x A B.

    It has a derivative of its own, in which the rank-R factor is on the left of each weight
    gradient: the compiler transposes the left factor, and would otherwise transpose the wide
    activations.
    """
    return _low_rank_forward(x, a, b, precision)[0]


def _low_rank_forward(
    x: jax.Array, a: jax.Array, b: jax.Array, precision: jax.lax.PrecisionLike
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    last = (x.ndim - 1,)
    low = kept(multiply(x, a, (last, (0,)), precision))
    return multiply(low, b, (last, (0,)), precision), (x, low, a, b)


def _low_rank_backward(
    precision: jax.lax.PrecisionLike, residuals: tuple[jax.Array, ...], grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, low, a, b = residuals
    last, others = (x.ndim - 1,), tuple(range(x.ndim - 1))
    grad_low = multiply(grad, b, (last, (1,)), precision)
    return (
        multiply(grad_low, a, (last, (1,)), precision),
        multiply(grad_low, x, (others, others), precision).T,
        multiply(low, grad, (others, others), precision),
    )


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


class LoRALinear(nnx.Linear):
    """A linear layer, or a stack of them, with an adapter.

    Attributes:
        lora_a: `[I, R]` or `[L, I, R]`, fp32.
        lora_b: `[R, O]` or `[L, R, O]`, fp32, zero at first.
        config: the adapter's settings.
        dropout_key: None without dropout.
    """

    dropout_key: DropoutKey | None = None

    def __init__(self, base: nnx.Linear, config: LoRAConfig, rngs: nnx.Rngs):
        """Adapts `base`, whose weights it shares; initialised as PEFT does."""
        super().__init__(**_arguments(base))
        self.kernel, self.bias, self.config = base.kernel, base.bias, config
        *stacked, inputs, outputs = base.kernel.shape
        bound = inputs**-0.5  # Kaiming uniform with a = sqrt(5)
        shape = (*stacked, inputs, config.rank)
        self.lora_a = LoRAParam(
            jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)
        )
        self.lora_b = LoRAParam(jnp.zeros((*stacked, config.rank, outputs), jnp.float32))

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """`[..., I]` to `[..., O]`, in the dtype of the linear layer's computation."""
        y = super().__call__(inputs, out_sharding)
        if self.dropout_key is not None:
            keep = 1 - self.config.dropout
            kept = jax.random.bernoulli(self.dropout_key[...], keep, inputs.shape)
            inputs = jnp.where(kept, inputs / keep, 0)
        x, a, b = self.promote_dtype((inputs, self.lora_a[...], self.lora_b[...]), dtype=self.dtype)
        return y + low_rank(self.config.scale * x, a, b, self.precision)


def _arguments(linear: nnx.Linear) -> dict[str, Any]:
    """What to build a layer like `linear` with; its weights are to be set."""
    return dict(
        in_features=linear.in_features,
        out_features=linear.out_features,
        use_bias=linear.use_bias,
        dtype=linear.dtype,
        param_dtype=linear.param_dtype,
        precision=linear.precision,
        dot_general=linear.dot_general,
        kernel_init=nnx.initializers.zeros_init(),
        rngs=nnx.Rngs(0),
    )


def _linears(model: nnx.Module) -> dict[str, nnx.Linear]:
    """The linear layers of `model` by their dotted paths."""
    modules = nnx.iter_modules(model)
    return {".".join(map(str, path)): m for path, m in modules if isinstance(m, nnx.Linear)}


def _set(model: nnx.Module, path: str, linear: nnx.Linear) -> None:
    *parents, name = path.split(".")
    setattr(functools.reduce(getattr, parents, model), name, linear)


def adapters(model: nnx.Module) -> dict[str, LoRALinear]:
    """The adapted layers of `model` by their dotted paths."""
    return {path: m for path, m in _linears(model).items() if isinstance(m, LoRALinear)}


def add(model: Model, config: LoRAConfig, rngs: nnx.Rngs) -> Model:
    """Adapts the linear layers of a plain model.

    Works on abstract models too: `nnx.eval_shape(lambda: add(SmolVLM(...), config, rngs))`.

    Args:
        model: stays as it is.
        config: which layers, and how.
        rngs: source of the initial `lora_a`.

    Returns:
        A model that shares the weights of `model` and computes the same until it is trained.

    Raises:
        ValueError: no linear layer is meant, or the model has adapters already.
    """
    if adapters(model):
        raise ValueError("the model has adapters already: merge or remove them first")
    model = nnx.clone(model)
    linears = _linears(model)
    targets = [path for path in linears if re.fullmatch(config.targets, path)]
    if not targets:
        raise ValueError(
            f"targets={config.targets!r} matches no linear layer; there are: {', '.join(linears)}"
        )
    for path in targets:
        _set(model, path, LoRALinear(linears[path], config, rngs))
    return model


def remove(model: Model) -> Model:
    """The plain model, its adapters thrown away; the other weights are shared, not copied."""
    model = nnx.clone(model)
    for path, adapted in adapters(model).items():
        plain = nnx.Linear(**_arguments(adapted))
        plain.kernel, plain.bias = adapted.kernel, adapted.bias
        _set(model, path, plain)
    return model


def merge(model: Model) -> Model:
    """The plain model that computes what the adapted one does: kernels W + scale * A B."""
    merged = remove(model)
    linears = _linears(merged)
    for path, adapted in adapters(model).items():
        a, b, kernel = adapted.lora_a[...], adapted.lora_b[...], adapted.kernel[...]
        delta = adapted.config.scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        linears[path].kernel = nnx.Param((kernel + delta).astype(kernel.dtype))
    return merged


def with_dropout(model: Model, key: jax.Array) -> Model:
    """The model with dropout before its adapters, for one training step.

    Call it inside the jitted step, on what `nnx.merge` returned, with a key of that step; the
    keys never enter the state. Without it (rollouts, references, evaluation) nothing is dropped.

    Args:
        model: an adapted model, stays as it is.
        key: each layer's mask comes from its own part of it.
    """
    model = nnx.clone(model)
    adapted = [m for m in adapters(model).values() if m.config.dropout]
    for module, own in zip(adapted, jax.random.split(key, len(adapted)), strict=True):
        module.dropout_key = DropoutKey(jax.random.split(own, module.kernel.shape[:-2]))
    return model
