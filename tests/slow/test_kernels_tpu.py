"""The TPU's compiler takes the kernels, in every form of running; it needs no TPU, but libtpu."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from polopt.models import DecoderConfig, LanguageModel
from polopt.models.layout import Layout
from polopt.plan.compile import devices_of
from polopt.plan.slices import read_slice
from polopt.rollout import lanes
from polopt.rollout.draw import Decoding
from polopt.train.parallel import Sharded, make_mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
pytest.importorskip("libtpu")

MODEL = LanguageModel(
    DecoderConfig(
        vocab_size=512,
        hidden_size=256,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=128,
        mlp_size=512,
        max_length=1024,
        window=200,
        local_layers=(0,),
    ),
    "bfloat16",
    attention="splash",
)
Shape = jax.ShapeDtypeStruct
KERNEL = 'custom_call_target="tpu_custom_call"'
TRAINED = 3 * 3  # prompts, and bins against themselves and their prompts; forward, and two backward


def integers(*shape):
    return Shape(shape, jnp.int32)


def layout(*lead):
    """P = 4 prompts of 256 tokens, each with two bins of 256."""
    return Layout(
        prompt=integers(*lead, 4, 256),
        prompt_length=integers(*lead, 4),
        tokens=integers(*lead, 8, 256),
        place=integers(*lead, 8, 256),
        segment=integers(*lead, 8, 256),
        source=integers(*lead, 8, 1),
    )


def gradient(params, layout):
    def total(params):
        return jnp.sum(MODEL.states(params, layout, remat=True) ** 2)

    return jax.grad(total)(params)


@pytest.fixture(scope="module", params=["v5e-4", "v6e-4"])
def devices(request):
    return devices_of(read_slice(request.param))


@pytest.fixture(scope="module")
def form(devices):
    return Sharded(make_mesh({"data": 2, "fsdp": 1, "tensor": 2, "sequence": 1}, devices))


PARAMS = jax.eval_shape(MODEL.init, jax.random.key(0))


def test_an_update_by_pmap(devices):
    mapped = jax.pmap(gradient, in_axes=(None, 0), devices=devices)
    text = mapped.lower(PARAMS, layout(4)).compile().as_text()
    assert text.count(KERNEL) == TRAINED


def test_an_update_by_mesh(form):
    whole = NamedSharding(form.mesh, PartitionSpec())
    given = jax.tree.map(lambda x: Shape(x.shape, x.dtype, sharding=whole), layout())
    with form.ambient():
        text = jax.jit(gradient).lower(form.abstract(PARAMS), given).compile().as_text()
    assert text.count(KERNEL) == TRAINED


def test_decoding_by_mesh(form):
    drawing = lanes.Drawing(decoding=Decoding(), eos_ids=(0,))

    def sample(params, prompts, lengths, key):
        how = {"key": key, "lanes": 4, "room": 200, "ring": 200}
        opened = lanes.spread(lanes.open_lanes(MODEL, params, prompts, lengths, **how))
        return lanes.run(MODEL, params, opened, drawing, until=np.int32(200), idle=16).out.tokens

    key = jax.eval_shape(lambda: jax.random.key(0))
    given = (form.abstract(PARAMS), integers(4, 100), integers(4), key)
    with form.ambient():
        text = jax.jit(sample).lower(*given).compile().as_text()
    assert text.count(KERNEL) == 2  # rings and prompts, which XLA reads, as they are short
