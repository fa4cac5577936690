"""Bytes that are counted from shapes are those of arrays that are really placed."""

import jax
import pytest

from plan import count
from plan.jobs import SHAPE, job_of
from polopt.algorithms import grpo, ppo
from polopt.models import LanguageModel
from polopt.plan.memory import beside, cache_bytes, held
from polopt.rollout.lanes import open_lanes, spread
from polopt.train.models import first_params
from polopt.train.parallel import choose
from polopt.train.update import init_state

SIZES = {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
FORM = ("data=2", "fsdp=2", "tensor=2")
ONE = dict.fromkeys(SIZES, 1)


def on_first_device(tree):
    """Bytes that the first device really has."""
    first = jax.devices()[0]
    shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == first)


def test_a_state_takes_what_its_placed_arrays_take(tmp_path):
    job, form = job_of(grpo(), tmp_path), choose("mesh", None, FORM)

    def start(params):
        return init_state(first_params(job.roles, params, 0), job.optimizer, job.state.memory)

    state = form.build(start, LanguageModel(SHAPE).init(jax.random.key(0)))
    counted = held(job, SIZES)
    assert counted.parameters == on_first_device(state.params)
    assert counted.optimiser == on_first_device((state.opt_state, state.step, state.skipped))


def test_on_one_device_a_parameter_takes_four_bytes_and_its_moments_eight(tmp_path):
    counted = held(job_of(grpo(), tmp_path), ONE)
    assert counted.parameters == pytest.approx(4 * count.parameters(SHAPE), rel=0.01)
    assert counted.optimiser == pytest.approx(8 * count.parameters(SHAPE), rel=0.01)
    norms = 4 * SHAPE.hidden_size * (2 * SHAPE.num_layers + 1)
    assert counted.frozen == (counted.parameters + norms) / 2  # the reference, in bfloat16


def test_a_critic_is_trained_beside_the_policy(tmp_path):
    counted = held(job_of(ppo(), tmp_path), ONE)
    assert counted.parameters == pytest.approx(2 * 4 * count.parameters(SHAPE), rel=0.01)


def test_models_over_one_base_share_it(tmp_path):
    rank, layers = 4, SHAPE.num_layers
    job = job_of(grpo(), tmp_path, lora_rank=rank)
    D, M, q, kv = 64, 128, 64, 32
    adapters = layers * rank * (2 * (D + q) + 2 * (D + kv) + 3 * (D + M))
    counted = held(job, ONE)
    assert counted.parameters == 4 * adapters
    assert counted.optimiser == pytest.approx(8 * adapters, abs=64)
    # The base once, though policy and reference both have it, and the reference's own adapters.
    norms = D * (2 * layers + 1)
    assert counted.frozen == 2 * (count.parameters(SHAPE) + norms) + 4 * adapters


def test_sampling_takes_the_policy_and_leaves_the_rest_beside_it(tmp_path):
    job = job_of(grpo(), tmp_path)
    counted = held(job, ONE)
    assert beside(job, ONE, "decode") == counted.optimiser + counted.frozen
    assert beside(job, ONE, "scoring") == counted.optimiser + counted.parameters
    assert beside(job, ONE, "update") == counted.frozen  # scored before it, on the only step


def test_caches_take_what_the_samplers_do(tmp_path):
    job = job_of(grpo(), tmp_path, compute_dtype="float32")
    form = choose("mesh", None, FORM)
    params = form.place(LanguageModel(SHAPE).init(jax.random.key(0)))

    def read(params, prompts, lengths):
        lanes = open_lanes(
            LanguageModel(SHAPE), params, prompts, lengths, key=jax.random.key(0), lanes=4,
            room=job.completion, ring=job.completion,
        )  # fmt: skip
        return spread(lanes)

    with form.ambient():
        shapes = jax.numpy.zeros((8, job.prompt), int), jax.numpy.ones(8, int)
        lanes = jax.jit(read)(params, *shapes)
    real = on_first_device((lanes.prompt.cache, lanes.cache))
    assert cache_bytes(job, rows=32, prompts=8, sizes=SIZES) == real
