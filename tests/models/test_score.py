"""`score` against a full `[N,T,V]` softmax, NumPy loops, and under JAX's transformations."""

import dataclasses
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polopt.columns import Column, jsd, kl_full, logp, top_k
from polopt.errors import PoloptError
from polopt.models import DecoderConfig, LanguageModel, PartitionModel, ValueModel
from polopt.models.score import score
from polopt.train.parallel import Sharded, make_mesh
from polopt.train.parallel.mesh import read_sizes

from .toys import Critic, Toy, toy_params, trajectories

N, T, V, D = 4, 7, 19, 5
POLICY, TEACHER = toy_params(0, V, D), toy_params(1, V, D)
TOKENS = np.random.default_rng(2).integers(0, V, (N, T)).astype(np.int32)
LENGTH = np.array([7, 6, 3, 0], np.int32)
TEMPERATURE = np.array([1.0, 0.7, 1.3, 0.0], np.float32)  # a padding row's is never used
MASK = np.random.default_rng(3).random((N, T)) < 0.6
COTANGENT = np.random.default_rng(4).normal(size=(5, N, T)).astype(np.float32)
NAMES = ("logp", "entropy", "sum_prob_sq", "kl_teacher", "jsd_teacher")
WANT = ("logp", "entropy", "sum_prob_sq", kl_full("teacher"), jsd(0.3, "teacher"))


def counted(mask, length):
    """bool[N,T]: what the head must score."""
    return (mask & (np.arange(T)[None] < length[:, None])) & (np.arange(T) > 0)[None]


def ours(policy, teacher, mask, length=LENGTH, tokens=TOKENS, **options):
    batch = trajectories(tokens, mask, length, TEMPERATURE)
    out = score({"policy": (Toy(), policy), "teacher": (Toy(), teacher)}, batch, WANT, **options)
    return {"logp": out.logp, **out.columns}


def naive(policy, teacher, mask, length=LENGTH, tokens=TOKENS):
    """The same columns from all of [N,T,V], differentiated by JAX."""
    hot = np.where(TEMPERATURE == 0, 1, TEMPERATURE)[:, None, None]

    def log_probs(params):
        logits = Toy().hidden(params, tokens) @ params["out"].T / hot
        return jnp.pad(jax.nn.log_softmax(logits)[:, :-1], ((0, 0), (1, 0), (0, 0)))

    s, q = log_probs(policy), log_probs(teacher)
    m = jnp.log(0.7 * jnp.exp(s) + 0.3 * jnp.exp(q))
    columns = {
        "logp": jnp.take_along_axis(s, tokens[..., None], 2)[..., 0],
        "entropy": -(jnp.exp(s) * s).sum(-1),
        "sum_prob_sq": jnp.exp(2 * s).sum(-1),
        "kl_teacher": (jnp.exp(s) * (s - q)).sum(-1),
        "jsd_teacher": 0.7 * (jnp.exp(s) * (s - m)).sum(-1) + 0.3 * (jnp.exp(q) * (q - m)).sum(-1),
    }
    return {name: jnp.where(counted(mask, length), x, 0) for name, x in columns.items()}


def pulled(columns, policy, teacher, mask, length=LENGTH, **options):
    """A scalar of the columns with one random weight per entry, and the columns themselves."""
    out = columns(policy, teacher, mask, length, **options)
    return sum((c * out[name]).sum() for c, name in zip(COTANGENT, NAMES, strict=True)), out


@functools.cache
def compiled(columns, **options):
    f = functools.partial(pulled, columns, **options)
    return jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))


def assert_close(actual, expected, tolerance=2e-5):
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "options", [{}, {"chunk": 3}, {"chunk": 4, "shards": 2}], ids=["whole", "chunks", "shards"]
)
@settings(max_examples=15)
@given(data=st.data())
def test_equals_the_full_softmax(options, data):
    """Masks, lengths and empty batches drawn; values of all columns, gradient of all weights."""
    bits = data.draw(st.lists(st.booleans(), min_size=N * T, max_size=N * T))
    mask = np.array(bits).reshape(N, T)
    length = np.array([*data.draw(st.lists(st.integers(0, T), min_size=3, max_size=3)), 0])
    (_, out), (gradient, teacher) = compiled(ours, **options)(POLICY, TEACHER, mask, length)
    (_, full), (expected, _) = naive_jitted()(POLICY, TEACHER, mask, length)
    assert_close(out, full)
    assert_close(gradient, expected)
    assert all(not np.any(x) for x in jax.tree.leaves(teacher))  # a constant, exactly
    for column in out.values():
        assert not np.any(np.asarray(column)[~counted(mask, length)])


@functools.cache
def naive_jitted():
    def f(policy, teacher, mask, length):
        inside = (jnp.arange(T)[None] < length[:, None]) & (jnp.arange(T) > 0)[None]
        out = naive(policy, teacher, np.ones((N, T), bool), np.full(N, T))
        out = {name: jnp.where(mask & inside, x, 0) for name, x in out.items()}
        return sum((c * out[k]).sum() for c, k in zip(COTANGENT, NAMES, strict=True)), out

    return jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))


def test_equals_a_loop_over_tokens():
    """Alignment, temperature and definitions, in float64 NumPy, one position at a time."""
    want = (*WANT, top_k(3), logp("teacher"))
    batch = trajectories(TOKENS, MASK, LENGTH, TEMPERATURE)
    out = score({"policy": (Toy(), POLICY), "teacher": (Toy(), TEACHER)}, batch, want, chunk=4)
    assert counted(MASK, LENGTH).sum() > 4
    for n, t in np.argwhere(counted(MASK, LENGTH)):
        p, q = (
            softmax(m["out"] @ m["embed"][TOKENS[n, :t]].sum(0) / TEMPERATURE[n])
            for m in (POLICY, TEACHER)
        )
        m = 0.7 * p + 0.3 * q
        best = np.argsort(-p)[:3]
        expected = {
            "entropy": -np.sum(p * np.log(p)),
            "sum_prob_sq": np.sum(p**2),
            "kl_teacher": np.sum(p * np.log(p / q)),
            "jsd_teacher": 0.3 * np.sum(q * np.log(q / m)) + 0.7 * np.sum(p * np.log(p / m)),
            "logp_teacher": np.log(q[TOKENS[n, t]]),
        }
        np.testing.assert_allclose(out.logp[n, t], np.log(p[TOKENS[n, t]]), rtol=1e-5)
        for name, value in expected.items():
            np.testing.assert_allclose(out.columns[name][n, t], value, rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(out.columns["top_k"].token[n, t], best)
        np.testing.assert_allclose(out.columns["top_k"].logp[n, t], np.log(p[best]), rtol=1e-5)


def softmax(z):
    z = np.exp(np.float64(z) - np.max(z))
    return z / z.sum()


def test_gradient_against_finite_differences_in_float64():
    with jax.enable_x64(True):
        policy, teacher = (toy_params(i, V, D, dtype=np.float64) for i in (0, 1))
        f = jax.jit(lambda params: pulled(ours, params, teacher, MASK, chunk=4)[0])
        gradient = jax.jit(jax.grad(f))(policy)
        rng = np.random.default_rng(5)
        for _ in range(3):
            step = jax.tree.map(lambda x: 1e-5 * rng.normal(size=x.shape), policy)
            up, down = (jax.tree.map(lambda x, d: x + s * d, policy, step) for s in (1, -1))
            slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, step)))
            assert gradient["out"].dtype == np.float64
            np.testing.assert_allclose((f(up) - f(down)) / 2, slope, rtol=1e-7)


def test_everything_masked():
    """No chunk at all: zeros, and a gradient of zeros."""
    nothing = np.zeros((N, T), bool)
    (_, out), (gradient, _) = compiled(ours, chunk=3)(POLICY, TEACHER, nothing, LENGTH)
    for leaf in jax.tree.leaves((out, gradient)):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_bfloat16_parameters_have_a_float32_softmax():
    policy, teacher = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (POLICY, TEACHER))
    (_, out), (gradient, _) = compiled(ours, chunk=3)(policy, teacher, MASK, LENGTH)
    widened = jax.tree.map(lambda x: np.asarray(x, np.float32), policy)
    (_, full), (expected, _) = naive_jitted()(widened, TEACHER, MASK, LENGTH)
    assert out["logp"].dtype == jnp.float32
    assert gradient["out"].dtype == jnp.bfloat16
    np.testing.assert_allclose(out["entropy"], full["entropy"], atol=0.02)
    np.testing.assert_allclose(gradient["out"].astype(np.float32), expected["out"], atol=0.2)


def test_extreme_logits_are_finite():
    huge = jax.tree.map(lambda x: 300 * x, POLICY)
    (_, out), (gradient, _) = compiled(ours, chunk=3)(huge, TEACHER, MASK, LENGTH)
    assert np.min(out["logp"]) < -1000
    chex.assert_tree_all_finite((out, gradient))


def test_vmap_over_weights_and_masks_walks_as_far_as_the_longest_lane():
    masks = np.stack([MASK, np.zeros_like(MASK), np.ones_like(MASK)])
    policies = jax.tree.map(lambda x: np.stack([x, 2 * x, -x]), POLICY)
    f = functools.partial(pulled, ours, teacher=TEACHER, chunk=3)
    g = jax.value_and_grad(lambda p, m: f(p, mask=m), has_aux=True)
    (_, out), gradient = jax.jit(jax.vmap(g))(policies, masks)
    for i in range(3):
        lane = jax.tree.map(lambda x, i=i: x[i], (policies, out, gradient))
        (_, full), (expected, _) = naive_jitted()(lane[0], TEACHER, masks[i], LENGTH)
        assert_close(lane[1:], (full, expected))


def per_rows(policy, rows):
    """A sum over rows that any split adds up to; `rows` are leaves [N, ...]."""
    tokens, mask, length, temperature = rows
    batch = trajectories(tokens, mask, length, temperature)
    out = score({"policy": (Toy(), policy)}, batch, ("logp", "entropy"), chunk=4)
    return out.logp.sum() + 0.3 * out.columns["entropy"].sum()


def eight_rows():
    rng = np.random.default_rng(6)
    tokens, mask = rng.integers(0, V, (8, T)).astype(np.int32), rng.random((8, T)) < 0.5
    return tokens, mask, rng.integers(0, T + 1, 8).astype(np.int32), np.full(8, 0.9, np.float32)


def test_micro_batches_and_devices_sum_to_the_whole():
    rows = eight_rows()
    expected = jax.jit(jax.grad(per_rows))(POLICY, rows)
    split = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), rows)

    @jax.jit
    def scanned(policy):
        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.grad(per_rows)(policy, part)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, policy), split)[0]

    assert_close(scanned(POLICY), expected)
    spread = jax.pmap(jax.grad(per_rows), in_axes=(None, 0))(POLICY, split)
    assert_close(jax.tree.map(lambda x: x.sum(0), spread), expected)


def test_shards_keep_states_on_their_device():
    """One all-reduce for the loop's length, one for the gradients, and nothing gathered."""
    rows = eight_rows()
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    same = NamedSharding(mesh, PartitionSpec())

    def f(policy, tokens, mask, length, temperature):
        batch = trajectories(tokens, mask, length, temperature)
        out = score({"policy": (Toy(), policy)}, batch, ("logp", "entropy"), chunk=4, shards=4)
        return out.logp.sum() + 0.3 * out.columns["entropy"].sum()

    step = jax.jit(jax.grad(f), in_shardings=(same, *[spread] * 4), out_shardings=same)
    program = step.lower(POLICY, *rows).compile()
    text = program.as_text()
    assert text.count(" all-reduce(") == 2
    assert not any(f" {name}(" in text for name in ("all-gather", "all-to-all"))
    placed = [jax.device_put(x, spread) for x in rows]
    assert_close(program(jax.device_put(POLICY, same), *placed), jax.grad(per_rows)(POLICY, rows))


WIDE = DecoderConfig(
    vocab_size=296,  # 37 for each of eight devices
    hidden_size=24,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=24,
    max_length=16,
)


@pytest.mark.parametrize(
    ("mesh", "chunk", "tied"),
    [
        ("fsdp=4 tensor=2", None, False),
        ("fsdp=4 tensor=2", 3, True),
        ("data=2 fsdp=4", 2, False),
        ("data=4 tensor=2", 3, False),
        ("fsdp=3 tensor=2", 3, False),  # which do not divide the vocabulary together
    ],
)
def test_a_mesh_cuts_the_vocabulary_by_all_that_cuts_parameters(mesh, chunk, tied):
    """Equal numbers; where it divides, no device has another's part of a matrix of [V,D]."""
    shape = dataclasses.replace(WIDE, tie_embeddings=tied)
    sizes = read_sizes(mesh.split())
    form = Sharded(make_mesh(sizes, jax.devices()[: math.prod(sizes.values())]))
    model = LanguageModel(shape)
    params = model.init(jax.random.key(0))
    rng, rows = np.random.default_rng(8), 2 * form.parts
    tokens = rng.integers(0, shape.vocab_size, (rows, 9)).astype(np.int32)
    length = rng.integers(2, 10, rows).astype(np.int32)
    heat = np.linspace(0.8, 1.2, rows, dtype=np.float32)
    args = tokens, rng.random((rows, 9)) < 0.7, length, heat
    weights = rng.normal(size=(2, rows, 9)).astype(np.float32)

    def gradient(shards):
        def loss(params, *args):
            models = {"policy": (model, params)}
            how = {"chunk": chunk, "shards": shards}
            out = score(models, trajectories(*args), ("logp", "entropy"), **how)
            return jnp.sum(weights[0] * out.logp + weights[1] * out.columns["entropy"]), out

        return jax.grad(loss, has_aux=True)

    expected = jax.jit(gradient(1))(params, *args)
    with form.ambient():
        where = form.shardings(params), None
        placed = form.place(params)
        program = jax.jit(gradient(form.parts), out_shardings=where).lower(placed, *args).compile()
        found = program(placed, *args)
    chex.assert_trees_all_close(*map(jax.device_get, (found, expected)), atol=1e-5)
    V, D, tensor = shape.vocab_size, shape.hidden_size, sizes["tensor"]
    if sizes["fsdp"] == 4:
        text = program.as_text()
        assert re.search(rf"f32\[(1,)?{V // tensor // 4},{D}\]", text)
        assert not re.search(rf"f32\[(\d+,)*({V}|{V // tensor}),{D}\]", text)


def test_equal_columns_do_not_retrace():
    @chex.assert_max_traces(n=1)
    def f(policy, mask, want):
        batch = trajectories(TOKENS, mask)
        return score({"policy": (Toy(), policy), "other": (Toy(), TEACHER)}, batch, want).columns

    g = jax.jit(f, static_argnums=2)
    first = g(POLICY, MASK, ("entropy", top_k(2), jsd(0.5, "other")))
    second = g(POLICY, ~MASK, ("entropy", top_k(2), jsd(0.5, "other")))
    assert np.any(first["entropy"] != second["entropy"])


def test_a_users_column_reads_two_models_and_has_a_gradient():
    def margins(logits, targets):
        both = logits["policy"] - logits["old"]
        picked = jnp.take_along_axis(both, targets[:, None], axis=-1)
        return jnp.concatenate([picked, both.max(-1, keepdims=True)], axis=-1)

    column = Column("margins", margins, ("policy", "old"))

    def f(policy, chunk):
        models = {"policy": (Toy(), policy), "old": (Toy(), TEACHER)}
        batch = trajectories(TOKENS, MASK, LENGTH)
        out = score(models, batch, (column,), chunk=chunk)
        assert out.logp is None
        return (out.columns["margins"] * COTANGENT[:2].transpose(1, 2, 0)).sum(), out

    (a, out), slope = jax.value_and_grad(f, has_aux=True)(POLICY, 2)
    (b, _), whole = jax.value_and_grad(f, has_aux=True)(POLICY, 100)
    assert out.columns["margins"].shape == (N, T, 2)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    assert_close(slope, whole)
    n, t = np.argwhere(counted(MASK, LENGTH))[0]
    z, w = (m["out"] @ m["embed"][TOKENS[n, :t]].sum(0) for m in (POLICY, TEACHER))
    expected = [(z - w)[TOKENS[n, t]], (z - w).max()]
    np.testing.assert_allclose(out.columns["margins"][n, t], expected, rtol=1e-4, atol=1e-5)


def test_value_comes_from_the_critic_and_trains_it():
    critic = {"embed": np.arange(V, dtype=np.float32)}

    def f(params):
        models = {"critic": (Critic(), params)}
        value = score(models, trajectories(TOKENS, MASK, LENGTH), ("value",)).columns["value"]
        return value.sum(), value

    (_, value), gradient = jax.value_and_grad(f, has_aux=True)(critic)
    expected, slope = np.zeros((N, T)), np.zeros(V)
    for n, t in np.argwhere(counted(MASK, LENGTH)):
        expected[n, t] = TOKENS[n, :t].sum()
        np.add.at(slope, TOKENS[n, :t], 1)
    np.testing.assert_allclose(value, expected)
    np.testing.assert_allclose(gradient["embed"], slope)


def test_whatever_is_trained_has_the_gradient_of_a_policy():
    """Of three models that are scored at once, two have one, each as if it were alone."""
    batch = trajectories(TOKENS, MASK, LENGTH, TEMPERATURE)

    def together(params):
        models = {name: (Toy(), p) for name, p in params.items()}
        want = ("logp", "logp_prm", "logp_teacher")
        out = score(models, batch, want, trained=("policy", "prm"))
        columns = (out.logp, out.columns["logp_prm"], out.columns["logp_teacher"])
        return sum((c * x).sum() for c, x in zip(COTANGENT[:3], columns, strict=True))

    def alone(params, c):
        return (c * score({"policy": (Toy(), params)}, batch).logp).sum()

    params = {"policy": POLICY, "prm": TEACHER, "teacher": toy_params(7, V, D)}
    found = jax.grad(together)(params)
    for name, c in zip(("policy", "prm"), COTANGENT[:2], strict=True):
        expected = jax.grad(alone)(params[name], c)
        for leaf in expected:
            np.testing.assert_allclose(found[name][leaf], expected[leaf], rtol=1e-5, atol=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(found["teacher"]))


def test_a_partition_is_one_number_per_prompt_and_does_not_move_the_policy():
    config = DecoderConfig(
        vocab_size=V,
        hidden_size=D,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        mlp_size=2,
        max_length=T,
    )
    start = np.array([2, 1, 3, 0], np.int32)
    batch = dataclasses.replace(
        trajectories(TOKENS, MASK, LENGTH, TEMPERATURE), prompt_length=start
    )
    head = {"kernel": COTANGENT[0, 0, :D], "bias": np.float32(0.5)}

    def log_z(policy, head):
        models = {"policy": (Toy(), policy), "partition": (PartitionModel(config), head)}
        return score(models, batch, ("log_z",)).columns["log_z"]

    states = np.cumsum(POLICY["embed"][TOKENS], axis=1)[np.arange(N), start - 1]
    expected = np.where(LENGTH > 0, states @ head["kernel"] + 0.5, 0)
    np.testing.assert_allclose(log_z(POLICY, head), expected, rtol=1e-5)
    policy, own = jax.grad(lambda *p: log_z(*p).sum(), argnums=(0, 1))(POLICY, head)
    assert not any(leaf.any() for leaf in jax.tree.leaves(policy))
    np.testing.assert_allclose(own["kernel"], states[:3].sum(0), rtol=1e-5)
    assert own["bias"] == 3


@pytest.mark.parametrize("beta", [0, 1])
def test_jsd_at_its_ends_is_a_kl_with_the_gradient_of_one(beta):
    batch = trajectories(TOKENS, MASK, LENGTH, np.ones(N, np.float32))

    def divergence(policy):
        models = {"policy": (Toy(), policy), "teacher": (Toy(), TEACHER)}
        out = score(models, batch, (jsd(beta, "teacher"),), chunk=4).columns["jsd_teacher"]
        return (COTANGENT[0] * out).sum()

    def kl(policy):
        s, q = (jax.nn.log_softmax(Toy().hidden(m, TOKENS) @ m["out"].T) for m in (policy, TEACHER))
        a, b = (s, q) if beta else (q, s)
        full = jnp.pad((jnp.exp(a) * (a - b)).sum(-1)[:, :-1], ((0, 0), (1, 0)))
        return (COTANGENT[0] * jnp.where(counted(MASK, LENGTH), full, 0)).sum()

    actual, expected = (jax.jit(jax.value_and_grad(f))(POLICY) for f in (divergence, kl))
    assert_close(actual, expected)


def test_agrees_with_the_decoders_own_logits():
    config = DecoderConfig(
        vocab_size=V, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        mlp_size=16, max_length=T,
    )  # fmt: skip
    model, critic = LanguageModel(config), ValueModel(config)
    params = model.init(jax.random.key(0))
    values = critic.init(jax.random.key(1))
    values["head"]["kernel"] = jnp.arange(16.0)
    models = {"policy": (model, params), "critic": (critic, values)}
    out = score(models, trajectories(TOKENS, MASK, LENGTH), ("logp", "value"))
    log_probs = jax.nn.log_softmax(model.logits(params, model.hidden(params, TOKENS)))
    expected = jnp.take_along_axis(log_probs[:, :-1], TOKENS[:, 1:, None], 2)[..., 0]
    inside = counted(MASK, LENGTH)
    np.testing.assert_allclose(out.logp[inside], np.asarray(expected)[inside[:, 1:]], rtol=1e-5)
    value = np.asarray(critic.value(values, TOKENS))
    np.testing.assert_allclose(out.columns["value"], np.where(inside, value, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("want", "options", "message"),
    [
        (("logq",), {}, "no column is called 'logq'; give logp"),
        (("logp_ref",), {}, "logp_ref reads the model 'reference'; models are policy"),
        (("value",), {}, "value reads the model 'critic'"),
        (("entropy", "logp", "entropy"), {}, "want names entropy more than once"),
        (("logp",), {"chunk": 0}, "chunk is 0; give 1 or more"),
        (("logp",), {"shards": 3}, "shards is 3; give a divisor of the 4 rows"),
        ((kl_full("small"),), {}, r"share a vocabulary; their sizes are .*'small': 7"),
        ((top_k(V + 1),), {}, "k is 20; the vocabulary has 19 tokens"),
        ((Column("mean", lambda z, y: z["policy"].mean()),), {}, r"column mean gave shape \(\)"),
    ],
)
def test_errors(want, options, message):
    models = {"policy": (Toy(), POLICY), "small": (Toy(), toy_params(0, 7, D))}
    with pytest.raises(PoloptError, match=message):
        score(models, trajectories(TOKENS % 7, MASK), want, **options)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: top_k(0), "k is 0; give an integer of 1 or more"),
    (lambda: jsd(1.5, "teacher"), r"beta is 1.5; give a number in \[0, 1\]"),
])  # fmt: skip
def test_errors_of_columns(make, message):
    with pytest.raises(PoloptError, match=message):
        make()
