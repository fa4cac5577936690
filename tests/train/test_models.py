"""Which models and columns a run makes is read off the method's pieces, and off nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt import algorithms, chain
from polopt.algorithm import Algorithm
from polopt.algorithms import grpo, ppo, reinforce
from polopt.columns import kl_full
from polopt.errors import PoloptError
from polopt.reward import outcome_return
from polopt.train.models import first_params, in_update, models_read, roles, scored
from polopt.train.setup import pool_of, remembering, teacher_of
from polopt.trajectory import divergence_loss, policy_gradient
from polopt.trajectory.sampling import Companion, Mixture, Prioritise, Sampling, Update
from polopt.transform import piece
from train import toy


@piece("reward", needs=("logp_teacher", "logp_prm", "sum_prob_sq", "drift"))
def reads_much(credit, trajectories):
    """Read columns of four kinds."""
    return credit


def method(*before, term=None, **sampling):
    terms = [policy_gradient(), *([] if term is None else [term])]
    return Algorithm(
        name="mine",
        reward=chain(*before, outcome_return()),
        trajectory=chain(*terms),
        sampling=Sampling(**sampling),
    )


def refused(call, message):
    with pytest.raises(PoloptError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("alg", "update", "read", "columns"),
    [
        (reinforce(), ("policy",), ("policy",), {}),
        # One step per batch: logp_old is the current log-probability, and only the KL's is scored.
        (grpo(), ("policy",), ("policy", "reference"), {"logp_ref"}),
        (ppo(), ("policy", "critic"), ("critic", "policy", "reference"), None),
        (
            method(reads_much()),
            ("policy",),
            ("policy", "prm", "teacher"),
            {"logp_teacher", "logp_prm", "sum_prob_sq"},
        ),
        (
            method(term=divergence_loss(1.0, kl_full("teacher"))),
            ("policy", "teacher"),
            ("policy", "teacher"),
            {},
        ),
        (method(mixture=Mixture(share=0.5)), ("policy",), ("policy", "teacher"), {}),
        (
            method(companion=Companion(column="best", policy="reference")),
            ("policy",),
            ("policy", "reference"),
            {},
        ),
    ],
)
def test_models_and_columns_come_from_the_pieces(alg, update, read, columns):
    assert sorted(in_update(alg)) == sorted(update)
    assert sorted(models_read(alg)) == sorted(read)
    assert columns is None or set(scored(alg)) == set(columns)
    made = roles(alg, toy.MODEL, toy.MODEL)
    assert set(made.trained) | set(made.given) == set(read)
    assert not set(made.given) - {"teacher", "reference"}
    assert made.hindsight is None
    assert made.drift == any(name == "reads_much" for name in alg.reward.names)


def test_every_shipped_method_finds_its_models():
    for key in algorithms.__all__:
        alg = getattr(algorithms, key)()
        if key == "gold":  # its spans come from two tokenizers, and this loop has one
            refused(lambda alg=alg: models_read(alg), "needs the column 'span', which this loop")
            continue
        read = models_read(alg)
        assert read[0] == "policy"
        assert set(read) <= {"policy", "reference", "teacher", "critic", "prm", "partition"}


def test_hindsight_needs_no_teacher():
    alg = algorithms.sdpo()
    made = roles(alg, toy.MODEL, None)
    assert set(made.modules) == {"policy", "reference"}
    assert made.hindsight == alg.update.teacher
    assert teacher_of(alg, toy.config(), toy.policy(), None) is None


def test_trained_models_start_where_they_should():
    alg = method(reads_much())
    made = first_params(roles(alg, toy.MODEL, toy.MODEL), toy.params(), 0)
    toy.assert_same_tree(made["prm"], toy.params())
    critic = first_params(roles(ppo(), toy.MODEL, None), toy.params(), 0)["critic"]
    toy.assert_same_tree(critic["decoder"], toy.params())
    assert not critic["head"]["kernel"].any()


# ---------------------------------------------------------------- what is refused, in one line


def test_a_teacher_is_asked_for_checked_and_not_ignored():
    distil, plain, policy = method(mixture=Mixture(share=0.5)), reinforce(), toy.policy()
    config = toy.config()
    refused(
        lambda: teacher_of(distil, config, policy, None),
        r"mine learns from a teacher: give one \(--teacher\)",
    )
    named = dataclasses.replace(config, teacher="base")
    refused(lambda: teacher_of(plain, named, policy, None), "teacher: reinforce reads none")
    refused(
        lambda: teacher_of(distil, named, policy, None),
        r"teacher: its tokenizer is not that of the model \(base and base\)",
    )
    other = toy.policy()
    assert teacher_of(distil, config, policy, other) is other
    assert teacher_of(plain, config, policy, None) is None


@piece("reward", reads="reward", clock="rollout", init=lambda prompts: jnp.zeros(3))
def one_memory(credit, trajectories, *, memory):
    """Remember three numbers, whatever the prompts."""
    return credit, memory


@pytest.mark.parametrize(
    ("alg", "who"),
    [
        (method(toy.prompt_tracker()), "prompt_tracker"),
        (method(reads_much()), "reads_much"),
        (method(prioritise=Prioritise()), "prioritise"),
        (
            method(companion=Companion(column="v", policy="reference", cache=True)),
            "the cached companion",
        ),
    ],
)
def test_memory_of_prompts_asks_for_an_end_of_them(alg, who):
    endless = toy.task(size=None)
    config = toy.config()
    refused(
        lambda: pool_of(endless, alg, config),
        rf"{who} of mine remembers every prompt, and toy has no end of them: give problems",
    )
    small = dataclasses.replace(config, problems=3)
    refused(lambda: pool_of(endless, alg, small), "draws 4 different prompts and toy has 3")
    assert pool_of(endless, alg, dataclasses.replace(config, problems=5)).size == 5


def test_answers_are_compared_where_there_are_any():
    alg = algorithms.ttrl()
    refused(lambda: pool_of(toy.task(), alg, toy.config()), r"ttrl compares answers, and toy does")
    assert scored(alg).keys() <= {"logp_ref"}
    assert pool_of(toy.task(answer=str.strip), alg, toy.config()).size == 6


def test_what_moves_is_not_remembered():
    alg = method(companion=Companion(column="v", policy="reference", cache=True))
    moving = dataclasses.replace(alg, update=Update(reference="previous"))
    refused(lambda: pool_of(toy.task(), moving, toy.config()), "a reference that moves")
    assert pool_of(toy.task(), alg, toy.config()).size == 6


def test_other_memory_needs_no_end_of_prompts():
    alg = method(one_memory())
    assert remembering(alg) == []
    assert pool_of(toy.task(size=None), alg, toy.config()).size is None


def test_a_pool_is_the_first_problems_again_and_again():
    shown = []
    endless = toy.task(size=None, train=lambda i: shown.append(i) or toy.example(i, i))
    made = pool_of(endless, reinforce(), toy.config(problems=3))
    found = [made.train(i) for i in (0, 1, 2, 3, 4, 100)]
    assert [e.index for e in found] == [0, 1, 2, 0, 1, 1]
    assert found[0].prompt == found[3].prompt == toy.example(0, 0).prompt
    assert shown == [0, 1, 2]  # made once
    refused(
        lambda: pool_of(toy.task(), reinforce(), toy.config(problems=7)),
        "problems=7, but toy has 6",
    )
    assert pool_of(toy.task(), reinforce(), toy.config()).size == 6


def test_a_prioritised_file_is_numbered_by_place():
    """A file shuffles its problems: its own numbers would not say which one is drawn."""
    backwards = toy.task(train=lambda i: toy.example(5 - i % 6, i % 6))
    made = pool_of(backwards, method(prioritise=Prioritise()), toy.config())
    assert [made.train(i).index for i in range(6)] == list(range(6))
    plain = pool_of(backwards, reinforce(), toy.config())
    assert [plain.train(i).index for i in range(6)] == [5, 4, 3, 2, 1, 0]


def test_an_unknown_model_or_column_is_named():
    strange = method(term=divergence_loss(1.0, kl_full("tutor")))
    refused(lambda: roles(strange, toy.MODEL, None), "mine reads a model 'tutor'")

    @piece("reward", needs=("colour",))
    def colourful(credit, trajectories):
        """Read what nobody makes."""
        return credit

    refused(lambda: scored(method(colourful())), "mine needs the column 'colour', which")


def test_a_partition_reads_the_last_token_of_the_prompt():
    key = jax.random.key(0)
    head = roles(algorithms.flowrl(), toy.MODEL, None).modules["partition"]
    params = head.init(key)
    hidden = np.random.default_rng(0).normal(size=(3, 5, 16)).astype(np.float32)
    params = {"kernel": jnp.arange(16.0), "bias": jnp.float32(2)}
    found = head.log_partition(params, hidden[[0, 1, 2], [0, 3, 0]])
    expected = hidden[[0, 1, 2], [0, 3, 0]] @ np.arange(16.0) + 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)
