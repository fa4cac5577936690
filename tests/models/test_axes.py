"""Names of dimensions, and the table that lays them on a mesh."""

import dataclasses

import jax
import pytest
from jax.sharding import PartitionSpec as P

from polopt.errors import PoloptError
from polopt.models import DecoderConfig, LanguageModel, ValueModel
from polopt.models.axes import TABLE, axes_of, spec_of
from polopt.models.config import Experts
from polopt.models.lora import LoraModel
from polopt.models.quantise import quantise

PLAIN = DecoderConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=24,
    max_length=32,
    tie_embeddings=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    qk_norm=True,
    post_norms=True,
)
ROUTED = dataclasses.replace(PLAIN, experts=Experts(count=4, chosen=2, size=24, dense_layers=(1,)))


def quantised(key):
    model = LanguageModel(PLAIN)
    return quantise(model, model.init(key), "nf4")[1]


def adapted(key):
    model = LoraModel(PLAIN, rank=2)
    return model.init(key)


MODELS = {
    "dense": LanguageModel(PLAIN).init,
    "experts": LanguageModel(ROUTED).init,
    "critic": ValueModel(PLAIN).init,
    "quantised": quantised,
    "adapters": adapted,
}


def leaves(init):
    """{path: shape} of a model's parameters."""
    found = jax.tree_util.tree_leaves_with_path(jax.eval_shape(init, jax.random.key(0)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in found}


SIZES = {"vocab": 64, "embed": 16, "heads": 32, "kv_heads": 16, "mlp": 24, "experts": 4, "rank": 2}


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_of_a_model_has_names_and_they_are_of_its_dimensions(name):
    found = leaves(MODELS[name])
    matrices = {path: shape for path, shape in found.items() if len(shape) > 1}
    assert len(matrices) >= 2 * 7
    for path, shape in matrices.items():
        names = axes_of(path)
        assert names is not None, path
        got = {n: size for n, size in zip(names, shape, strict=True) if n != "blocks"}
        assert got == {n: SIZES[n] for n in got}, path
    biases = [path for path in found if path.endswith("/bias") and "head/" not in path]
    assert all(axes_of(path) for path in biases)
    assert not any(axes_of(path) for path in found if "norm" in path)


def test_what_is_not_a_parameter_of_ours_is_whole():
    sizes = {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    for path, shape in [
        ("step", ()),
        ("memory/update/trajectory/clip/width", (4,)),
        ("params/policy/layers/0/mlp_norm/scale", (16,)),
        ("params/critic/head/kernel", (16,)),
        ("opt_state/0/v_row/embed/embedding", (64,)),  # factored: another rank
    ]:
        assert spec_of(path, shape, sizes) == P()


def test_optimiser_state_lies_as_its_parameter_does():
    sizes = {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    for before in ("", "params/policy/", "opt_state/1/0/mu/policy/", "given/reference/"):
        assert spec_of(f"{before}layers/1/mlp/up/kernel", (16, 24), sizes) == P("fsdp", "tensor")
        assert spec_of(f"{before}layers/1/mlp/down/kernel", (24, 16), sizes) == P("tensor", "fsdp")


def test_axes_of_size_one_cut_nothing():
    sizes = {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert spec_of("embed/embedding", (63, 15), sizes) == P(None, None)


@pytest.mark.parametrize(
    ("table", "shape", "message"),
    [
        ({"embed": "tensor"}, (16, 24), "embed, mlp of layers/0/mlp/up/kernel would lie on the"),
        ({"mlp": ("tensor", "tensor")}, (16, 24), "would lie on the axis 'tensor' twice"),
        ({}, (16, 27), "tensor=2 does not divide the 27 of 'mlp' in layers/0/mlp/up/kernel"),
        ({"mlp": ("data", "tensor")}, (16, 6), "data=2 x tensor=2 does not divide the 6 of 'mlp'"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(table, shape, message):
    sizes = {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    with pytest.raises(PoloptError, match=message) as error:
        spec_of("layers/0/mlp/up/kernel", shape, sizes, {**TABLE, **table})
    assert "\n" not in str(error.value)
