"""What the TPU's compiler says of a layer of Llama 3 8B, with attention by XLA and by the kernels.

No TPU is needed, and none is used: pip install "jax[tpu]", then

    JAX_PLATFORMS=cpu python experiments/kernels/run.py v5e v6e

prints a table in Markdown. Sequences are of 4,096 tokens, in bfloat16 on one chip: a row is all of
one; bins are four completions of 2,048 tokens that continue one prompt of 2,048; decoding is of
64 rows that continue 8 prompts, with rings of 2,048 tokens.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from polopt.models import DecoderConfig, LanguageModel
from polopt.models.layout import Layout

LAYER = DecoderConfig(
    vocab_size=256,  # the head is no part of the question
    hidden_size=4096,
    num_layers=1,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_size=14336,
    max_length=8192,
    rope_theta=500_000.0,
)
HALF, LANES = 2048, 64
Shape = jax.ShapeDtypeStruct


class Case(NamedTuple):
    """A program of one layer: a function of parameters and shapes."""

    name: str
    make: Any
    arguments: Any


def integers(*shape: int) -> Shape:
    return Shape(shape, jnp.int32)


def cases(model: LanguageModel) -> list[Case]:
    """Programs that a training step has, for a handle."""

    def rows(params: Any, tokens: Any) -> Any:
        return jnp.sum(model.hidden(params, tokens) ** 2)

    def bins(params: Any, layout: Any) -> Any:
        return jnp.sum(model.states(params, layout) ** 2)

    def decode(params: Any, prompt: Any, cache: Any, tokens: Any, step: Any) -> Any:
        return model.decode(params, prompt, cache, tokens, step)

    layout = Layout(
        prompt=integers(1, HALF),
        prompt_length=integers(1),
        tokens=integers(4, HALF),
        place=integers(4, HALF),
        segment=integers(4, HALF),
        source=integers(4, 2 * HALF),
    )
    params = shapes(model)
    prompt, _ = jax.eval_shape(model.prefill, params, integers(8, HALF), integers(8))
    cache = jax.eval_shape(lambda: model.empty_cache(LANES, HALF))
    step = (prompt, cache, integers(LANES), integers())
    return [
        Case("gradient of a row", jax.grad(rows), (integers(1, 2 * HALF),)),
        Case("gradient of bins", jax.grad(bins), (layout,)),
        Case("decoding step", decode, step),
    ]


def shapes(model: LanguageModel) -> Any:
    made = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: Shape(x.shape, jnp.bfloat16), made)


def compiled(case: Case, model: LanguageModel, device: Any) -> Any:
    """The program for a device that need not be here."""
    where = SingleDeviceSharding(device)
    arguments = jax.tree.map(
        lambda x: Shape(x.shape, x.dtype, sharding=where), (shapes(model), *case.arguments)
    )
    donated = 2 if case.name == "decoding step" else ()
    return jax.jit(case.make, donate_argnums=donated).lower(*arguments).compile()


def main(chips: list[str]) -> None:
    """Compile everything, a line for each."""
    print("| chip | program | attention | temporary | read and written | kernels |")
    print("|---|---|---|---|---|---|")
    for chip in chips:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip}:1x1", chips_per_host_bounds=[1, 1, 1]
        )
        for number in range(3):
            for kind in ("xla", "splash"):
                model = LanguageModel(LAYER, "bfloat16", attention=kind)
                case = cases(model)[number]
                program = compiled(case, model, found.devices[0])
                temporary = program.memory_analysis().temp_size_in_bytes
                moved = program.cost_analysis()["bytes accessed"]
                kernels = program.as_text().count('custom_call_target="tpu_custom_call"')
                print(
                    f"| {chip} | {case.name} | {kind} | {temporary / 1e6:,.0f} MB | "
                    f"{moved / 1e9:.2f} GB | {kernels} |",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:] or ["v5e", "v6e"])
