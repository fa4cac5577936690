"""The pure update: every way of splitting a step is the whole, and a bad gradient moves nothing."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polopt import algorithms, chain
from polopt.algorithm import Algorithm, coupling, init, needs, wants
from polopt.algorithms import grpo, gspo, ppo
from polopt.columns import models_of
from polopt.compose import RECORDED, loss, prepare
from polopt.models.score import score
from polopt.numerics import group_mean, masked_sum, row_length, row_mean
from polopt.reward import group_mean_baseline, max_at_k, outcome_return
from polopt.testing.draw import random_trajectories, take_rows
from polopt.train.parallel import Jit, Pmap, choose
from polopt.train.rows import assign_steps, pad_rows, round_up
from polopt.train.update import init_state, make_scorer, make_update
from polopt.trajectory import Update, clip, token_ratio
from polopt.transform import piece
from polopt.types import Term, info_values
from train import toy

SEED = 1  # of the deal to steps: the first has 7 rows, ragged groups, and ids up to 9


class Recent:
    """A policy and a critic that see the last two tokens: little to compile.

    Its weights have names that a mesh knows.
    """

    def hidden(self, params, tokens):
        embedded = params["embed"]["embedding"][tokens]
        before = jnp.pad(embedded[:, :-1], ((0, 0), (1, 0), (0, 0)))
        last, earlier = (params["mlp"][name]["kernel"] for name in ("up", "down"))
        return jnp.tanh(embedded @ last + before @ earlier)

    def unembedding(self, params):
        return params["embed"]["embedding"]

    def value(self, params, tokens):
        after = self.hidden(params, tokens) @ params["head"]
        return jnp.pad(after[:, :-1], ((0, 0), (1, 0)))

    def init(self, seed):
        rng = np.random.default_rng(seed)
        embed, last, earlier, head = (
            jnp.asarray(rng.normal(size=shape), jnp.float32)
            for shape in ((50, 8), (8, 8), (8, 8), (8,))
        )
        mlp = {"up": {"kernel": last}, "down": {"kernel": earlier}}
        return {"embed": {"embedding": embed}, "mlp": mlp, "head": head}

    def log_partition(self, params, state):
        return state @ params["head"]


MESH = choose("mesh", 8, ("data=2", "fsdp=2", "tensor=2"))

MODULES = {name: Recent() for name in ("policy", "critic", "prm", "partition", "teacher")}


@piece("trajectory", reads="ratio", writes="policy", term="policy", couples="batch")
def against_the_batch(surrogate, context):
    """A token is compared with the mean log-probability of all tokens of the step."""
    mean = masked_sum(surrogate.logp, context.mask) / jnp.maximum(context.mask.sum(), 1)
    objective = context.credit * surrogate.ratio * jnp.tanh(surrogate.logp - mean)
    term = Term(objective=objective, mask=context.mask)
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "policy": term})


@piece("trajectory", reads="ratio", writes="policy", term="policy", couples="group")
def against_the_group(surrogate, context):
    """A row's drift, less its group's mean, is regressed on its credit."""
    drift = row_mean(surrogate.log_ratio, context.mask)
    real = (row_length(context.mask) > 0).astype(jnp.float32)
    centred = drift - group_mean(drift, context.rows.group, real)
    term = Term(objective=-((centred[:, None] - context.credit) ** 2), mask=context.mask)
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "policy": term})


def method(objective):
    return Algorithm(
        reward=chain(outcome_return(), group_mean_baseline()),
        trajectory=chain(token_ratio(), objective),
        update=Update(minibatches=2),
    )


def several_steps(alg):
    return alg.replace(update=Update(minibatches=2))


METHODS = {
    "none": several_steps(grpo()),
    "sequence": several_steps(gspo().replace(clip=clip(0.5, 0.5))),
    "critic": several_steps(ppo()),
    "group": method(against_the_group()),
    "batch": method(against_the_batch()),
}
SHIPPED = {key: several_steps(getattr(algorithms, key)()) for key in algorithms.__all__}
# Their own clips, thresholds and sizes of a group would leave no gradient to compare.
SHIPPED["gspo"] = METHODS["sequence"]
SHIPPED["gspo_token"] = SHIPPED["gspo_token"].replace(clip=clip(0.5, 0.5))
SHIPPED["luspo"] = SHIPPED["luspo"].replace(clip=clip(0.5, 0.5))
SHIPPED["passk_grpo"] = several_steps(algorithms.passk_grpo(credit=max_at_k(k=2)))
METHODS |= SHIPPED


def declared(alg, name, couples):
    """The same method whose piece says that it couples something else."""
    old = dict(zip(alg.trajectory.names, alg.trajectory.links, strict=True))[name]
    return alg.replace(
        **{name: dataclasses.replace(old, card=dataclasses.replace(old.card, couples=couples))}
    )


def modules_of(alg):
    read = {"policy", *(name for want in wants(alg) for name in models_of(want))}
    return {name: module for name, module in MODULES.items() if name in read}


def split(params, modules):
    """The parameters that an update moves, and those of the teacher."""
    mine = {name: params[name] for name in modules if name != "teacher"}
    return mine, {name: params[name] for name in modules if name == "teacher"}


@pytest.fixture(scope="module")
def world():
    """Parameters, and a ragged batch recorded near them."""
    params = {name: Recent().init(seed) for seed, name in enumerate(MODULES)}
    for name in ("policy", "prm", "teacher"):
        del params[name]["head"]
    recorded = {name for alg in METHODS.values() for name in needs(alg)} - {*RECORDED, "returns"}
    batch = random_trajectories(3, columns=sorted(recorded))
    two = {name: MODULES[name] for name in ("policy", "critic")}
    scorer = jax.jit(make_scorer(two, ("logp", "value")))
    out = scorer(params, batch, np.arange(14, dtype=np.int32).reshape(2, 7))
    rng = np.random.default_rng(0)

    def near(x, distance):
        return np.asarray(x) + distance * rng.normal(size=x.shape).astype(np.float32)

    columns = {
        **batch.columns,
        "answer": (np.arange(14) % 3 == 0).astype(np.int32),
        "logp_old": near(out["logp"], 0.2),
        "logp_ref": near(out["logp"], 0.4),
        "value": near(out["value"], 0.1),
    }
    batch = jax.tree.map(jnp.asarray, dataclasses.replace(batch, columns=columns))
    return params, batch, out


@functools.cache
def prepared_step(couples):
    """A method's prepared batch, and the ragged rows of its first optimiser step."""
    _, batch, _ = prepared_step.world
    step_of, steps = assign_steps(batch.group, 2, (SEED,))
    alg = METHODS[couples]
    made = jax.jit(functools.partial(prepare, alg))
    prepared, _ = made(batch, state=init(alg, prompts=14), key=jax.random.key(5), step_of=step_of)
    return prepared, steps[0]


@functools.cache
def whole_gradient(couples):
    """Plain jax.grad of the loss of the step's rows, cut out with NumPy: nothing is padded."""
    params, batch, _ = prepared_step.world
    alg, (prepared, rows) = METHODS[couples], prepared_step(couples)
    cut = take_rows(batch, rows)
    kept = take_rows(prepared.rows, rows)
    kept = dataclasses.replace(kept, group=np.unique(kept.group, return_inverse=True)[1])

    modules = modules_of(alg)
    mine, given = split(params, modules)

    def whole(mine):
        models = {name: (module, {**mine, **given}[name]) for name, module in modules.items()}
        outputs = score(models, cut, ("logp", *wants(alg)), trained=tuple(mine))
        return loss(alg, outputs, dataclasses.replace(prepared, rows=kept))

    (value, info), grads = jax.jit(jax.value_and_grad(whole, has_aux=True))(mine)
    return grads, {**info_values(info), "policy/loss": value}


# An optimiser that does nothing but keep the gradient.
KEEP = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def gradient(alg, couples, parallel, micro):
    params, batch, _ = prepared_step.world
    prepared, rows = prepared_step(couples)
    modules = modules_of(alg)
    mine, given = split(params, modules)
    state = init_state(mine, KEEP, init(alg, prompts=14))
    how = {"axis": parallel.axis, "shards": parallel.shards}
    update = parallel.step(make_update(alg, modules, KEEP, **how))
    padded = pad_rows(rows, round_up(len(rows), micro * parallel.parts), len(batch.length))
    splits = padded.reshape(-1, micro)
    state, info = update(parallel.place(state), parallel.place(given), batch, prepared, splits)
    for copy in range(parallel.devices if parallel.axis else 0):
        toy.assert_same_tree(
            jax.tree.map(lambda x, copy=copy: x[copy], state.opt_state),
            parallel.single(state.opt_state),
        )
    return parallel.single(state.opt_state), info_values(info)


def relative_error(found, expected):
    """The largest relative error of a leaf, in the Euclidean norm."""
    assert max(float(jnp.linalg.norm(x)) for x in jax.tree.leaves(expected)) > 0
    error = jax.tree.map(
        lambda a, b: jnp.linalg.norm(a - b) / jnp.maximum(jnp.linalg.norm(b), 1e-30),
        found,
        expected,
    )
    return max(float(x) for x in jax.tree.leaves(error))


@pytest.fixture(autouse=True)
def _world(world):
    prepared_step.world = world


@pytest.mark.parametrize(
    ("couples", "form", "micro"),
    [
        ("none", Jit(), 3),
        ("none", Pmap(1), 8),
        ("none", Pmap(2), 2),
        ("none", Pmap(8), 1),
        ("sequence", Pmap(2), 2),
        ("critic", Pmap(2), 2),
        ("group", Pmap(2), 2),
        ("batch", Jit(), 3),
        ("batch", Pmap(8), 1),
        ("batch", MESH, 2),
    ],
)
def test_every_split_of_a_step_is_the_whole(couples, form, micro):
    alg = METHODS[couples]
    expected, measured = whole_gradient(couples)
    found, info = gradient(alg, couples, form, micro)
    assert coupling(alg) == ("none" if couples == "critic" else couples)
    assert relative_error(found, expected) <= 1e-5
    for name, value in measured.items():
        np.testing.assert_allclose(info[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_two_steps_on_a_mesh_are_two_steps_on_one_device():
    params, batch, _ = prepared_step.world
    prepared, rows = prepared_step("none")
    alg, modules = METHODS["none"], {"policy": MODULES["policy"]}
    optimizer, left = optax.adamw(1e-2), []
    for form in (Jit(), MESH):
        step = form.step(make_update(alg, modules, optimizer, shards=form.shards))
        padded = pad_rows(rows, round_up(len(rows), form.parts), len(batch.length))
        state = init_state({"policy": params["policy"]}, optimizer, init(alg))
        state, losses = form.place(state), []
        for _ in range(2):
            state, info = step(state, {}, batch, prepared, padded[:, None])
            losses.append(float(info_values(info)["policy/loss"]))
        left.append((losses, jax.device_get(state.params)))
    assert losses[0] != losses[1]
    chex.assert_trees_all_close(*left, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "micro"), [(Jit(), 3), (Pmap(8), 1), (MESH, 1)])
@pytest.mark.parametrize("key", SHIPPED)
def test_every_method_on_one_and_eight_devices(key, form, micro):
    expected, measured = whole_gradient(key)
    found, info = gradient(METHODS[key], key, form, micro)
    assert relative_error(found, expected) <= 1e-5
    for name, value in measured.items():
        np.testing.assert_allclose(info[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_the_cotangent_form_is_the_single_forward_form():
    alg = declared(METHODS["none"], "clip", "batch")
    assert coupling(alg) == "batch"
    found, _ = gradient(alg, "none", Jit(), 3)
    assert relative_error(found, whole_gradient("none")[0]) <= 1e-5


def test_a_gradient_that_is_not_finite_moves_nothing():
    """Parameters, optimiser and memory stay as they were, bit for bit; the next step is normal."""
    params, batch, _ = prepared_step.world
    alg = method(toy.adaptive_clip())
    rows = np.arange(14, dtype=np.int32).reshape(2, 7)
    prepared, _ = jax.jit(functools.partial(prepare, alg))(batch, step_of=np.zeros(14, np.int32))
    poison = prepared.rows.credit.at[np.flatnonzero(prepared.rows.mask.any(1))[0]].set(jnp.inf)
    poisoned = dataclasses.replace(prepared, rows=dataclasses.replace(prepared.rows, credit=poison))
    optimizer = optax.adamw(1e-2)
    update = Jit().step(make_update(alg, {"policy": Recent()}, optimizer))
    state = init_state({"policy": params["policy"]}, optimizer, init(alg))
    state, info = update(state, {}, batch, prepared, rows)
    before = jax.device_get(state)
    assert int(before.opt_state[0].count) == 1
    assert float(info_values(info)["update/param_change"]) > 0
    state, info = update(state, {}, batch, poisoned, rows)
    assert (int(state.step), int(state.skipped)) == (2, 1)
    assert not np.isfinite(info_values(info)["update/grad_norm"])
    assert float(info_values(info)["update/param_change"]) == 0
    for part in ("params", "opt_state", "memory"):
        toy.assert_same_tree(getattr(state, part), getattr(before, part))
    state, _ = update(state, {}, batch, prepared, rows)
    assert (int(state.step), int(state.skipped)) == (3, 1)
    assert int(state.opt_state[0].count) == 2
    assert int(state.memory["update"]["trajectory/adaptive_clip"]["steps"]) == 2
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, before.params)
    assert all(jax.tree.leaves(moved))
    assert np.isfinite(
        params["policy"]["embed"]["embedding"]
    ).all()  # the caller's own are not donated


@pytest.mark.parametrize("form", [Pmap(2), MESH])
def test_the_scorer_pads_and_splits_exactly(world, form):
    params, batch, whole = world
    made = make_scorer({"policy": Recent()}, ("logp",), shards=form.shards)
    scorer = form.rows(made, dealt=1)
    rows = pad_rows(np.arange(14), round_up(14, 3 * form.parts), 14)
    out = scorer(form.place({"policy": params["policy"]}), batch, rows.reshape(-1, 3))
    np.testing.assert_allclose(out["logp"][:14], whole["logp"], atol=1e-5)
    assert not np.asarray(out["logp"][14:]).any()
