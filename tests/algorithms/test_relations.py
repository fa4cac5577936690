"""Relations between methods: where one becomes another. Every method that ships stands in one.

Gradients are compared in float64, at a policy that has moved unless the name says otherwise.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest

from polopt import algorithms, chain
from polopt.aggregate import (
    constant_length,
    sequence_sum_mean,
    token_mean,
    token_sum,
)
from polopt.algorithm import Algorithm, needs, wants
from polopt.columns import name_of
from polopt.compose import RECORDED
from polopt.divergence import k2
from polopt.reward import (
    analytic_pass_at_k,
    batch_whiten,
    gae,
    group_mean_baseline,
    group_std_scale,
    leave_one_out_baseline,
    outcome_return,
    sibling_spread,
    tree_backup,
)
from polopt.testing import Case, measure, random_outputs, random_trajectories
from polopt.trajectory import (
    adaptive_clip,
    clip,
    covariance_clip,
    covariance_penalty,
    detach_weight,
    divergence_mask,
    entropy_quantile_mask,
    geometric_mean_surrogate,
    kl_penalty,
    offpolicy_sequence_mask,
    one_side_mask,
    policy_gradient,
    ratio_cap,
    token_ratio,
    unclipped,
)
from polopt.types import PolicyOutputs, Trajectories

A = algorithms
WIDE = 1e6
GROUP = chain(group_mean_baseline(), group_std_scale())
Change = Callable[[Trajectories, PolicyOutputs], tuple[Trajectories, PolicyOutputs]]


@dataclasses.dataclass(frozen=True)
class Relation:
    """The gradient of `left` is `factor` times that of `right` on a batch of some kind."""

    keys: tuple[str, ...]
    left: Algorithm
    right: Algorithm
    on: tuple[Change, ...] = ()
    factor: float | None = 1.0  # None: any one positive number
    column: str = "logp"


# ---------------------------------------------------------------- kinds of batches


def alone(batch, outputs):
    """Every row is scored and an episode of its own."""
    real = batch.group >= 0
    episode = np.where(real, np.arange(len(real)), -1)
    return dataclasses.replace(batch, episode=episode, scored=real), outputs


def at(column: str, *moved: str) -> Change:
    """The policy, and further columns, stand where `column` does."""

    def change(batch, outputs):
        logp = batch.columns[column]
        columns = {**batch.columns, **dict.fromkeys(moved, logp)}
        return dataclasses.replace(batch, columns=columns), dataclasses.replace(outputs, logp=logp)

    return change


def sampled(column: str) -> Change:
    """The sampler agrees with a column."""

    def change(batch, outputs):
        sampler = batch.columns[column]
        return dataclasses.replace(batch, logp_sampler=sampler, log_keep=0 * sampler), outputs

    return change


def equal_lengths(batch, outputs):
    """Three actions on every row, one turn, the outcome on the last."""
    real = batch.group[:, None] >= 0
    mask = np.zeros_like(batch.action_mask)
    mask[:, 2:5] = real
    reward = np.zeros(mask.shape)
    reward[:, 4] = np.where(real[:, 0], np.arange(len(mask)) % 4 / 3, 0)
    return dataclasses.replace(
        batch,
        action_mask=mask,
        prompt_length=np.where(real[:, 0], 2, 0),
        length=np.where(real[:, 0], 10, 0),
        turn=np.where(mask, 0, -1),
        reward_parts={"outcome": reward},
    ), outputs


def binary(batch, outputs):
    """Outcomes of 0 and 1, on the last action."""
    mask = batch.action_mask
    last = mask & (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1)
    return dataclasses.replace(
        batch, reward_parts={"outcome": last * (np.arange(len(mask)) % 3 == 0)[:, None] * 1.0}
    ), outputs


def pairs(batch, outputs):
    """Groups of two rows that differ."""
    batch, outputs = equal_lengths(*alone(batch, outputs))
    real = batch.group >= 0
    order = np.cumsum(real) - 1
    whole = real & (order < real.sum() // 2 * 2)
    batch = dataclasses.replace(
        batch,
        group=np.where(whole, order // 2, -1),
        length=np.where(whole, batch.length, 0),
        scored=whole,
        action_mask=batch.action_mask & whole[:, None],
        turn=np.where(whole[:, None], batch.turn, -1),
        episode=np.where(whole, batch.episode, -1),
        reward_parts={k: v * whole[:, None] for k, v in batch.reward_parts.items()},
    )
    return batch, outputs


def one_group(batch, outputs):
    return dataclasses.replace(batch, group=np.where(batch.group >= 0, 0, -1)), outputs


def own_nodes(batch, outputs):
    """A tree without a shared token: every row hangs at the root by itself."""
    node = np.where(batch.action_mask, np.arange(len(batch.group))[:, None], -1)
    return dataclasses.replace(batch, columns={**batch.columns, "node": node}), outputs


def column(name: str, values: Callable) -> Change:
    def change(batch, outputs):
        made = {**batch.columns, name: values(batch)}
        return dataclasses.replace(batch, columns=made), outputs

    return change


def right_or_wrong(batch) -> np.ndarray:
    """Two answers, of which one has the majority in every group."""
    place = np.zeros(len(batch.group), int)
    for g in set(batch.group.tolist()) - {-1}:
        rows = np.flatnonzero(batch.group == g)
        place[rows] = np.arange(len(rows)) == 0 if len(rows) > 2 else 0
    return place


def token_turns(batch, outputs):
    """Every action is a turn of its own, none of them adjacent to the next."""
    batch, outputs = equal_lengths(batch, outputs)
    turn = np.where(batch.action_mask, np.cumsum(batch.action_mask, axis=1) - 1, -1)
    return dataclasses.replace(batch, turn=turn), outputs


# ---------------------------------------------------------------- relations

pg = policy_gradient()
grpo, dr = A.grpo(kl=0.0).replace(kl_penalty=chain()), A.dr_grpo()
tokens = grpo.replace(aggregate=token_mean())
means = dr.replace(aggregate=token_mean())
free = chain(token_ratio(), unclipped())
OLD, REF = at("logp_old"), at("logp_ref")

RELATIONS = {
    "a clip at ratio one is REINFORCE": Relation(
        ("grpo", "dr_grpo"), dr, dr.replace(trajectory=chain(pg)), (OLD,)
    ),
    "reinforce, where all returns are one, is likelihood": Relation(
        ("reinforce", "topr"),
        A.topr(),
        A.reinforce(),
        (binary,),
    ),
    "rloo without KL on groups of two is twice the group mean": Relation(
        ("rloo",),
        A.rloo().replace(kl_in_reward=chain()),
        A.reinforce().replace(reward=chain(outcome_return(), group_mean_baseline())),
        (pairs,),
        2.0,
    ),
    "remax against nothing is the return to go": Relation(
        ("remax",),
        A.remax().replace(kl_in_reward=chain()),
        A.reinforce(),
        (alone, equal_lengths, column("greedy_return", lambda b: np.zeros(len(b.group)))),
    ),
    "reinforce_pp on one outcome is the whitened outcome": Relation(
        ("reinforce_pp",),
        A.reinforce_pp().replace(kl_in_reward=chain()),
        A.reinforce_pp().replace(reward=chain(outcome_return(), batch_whiten())),
        (alone, equal_lengths),
    ),
    "reinforce_pp_baseline unwhitened is the group mean": Relation(
        ("reinforce_pp_baseline",),
        A.reinforce_pp_baseline().replace(batch_whiten=chain(), kl_penalty=chain()),
        means,
    ),
    "opo with equal lengths is the group mean": Relation(
        ("opo",), A.opo(), means.replace(trajectory=chain(pg)), (alone, equal_lengths)
    ),
    "otb with constant energy and equal lengths is the group mean": Relation(
        ("otb",),
        A.otb(),
        means,
        (
            alone,
            equal_lengths,
            column("sum_prob_sq", lambda b: 2 * np.exp(b.columns["logp_old"])),
        ),
    ),
    "gpg is a multiple of the group mean": Relation(
        ("gpg",), A.gpg(), means.replace(trajectory=chain(pg)), (), None
    ),
    "lite_ppo is a multiple of the group mean": Relation(
        ("lite_ppo",), A.lite_ppo(), means, (), None
    ),
    "a2c is ppo at ratio one": Relation(
        ("a2c", "ppo"),
        A.a2c().replace(entropy_bonus=chain(), value_loss=chain()),
        A.ppo(lam=1.0).replace(kl_in_reward=chain(), batch_whiten=chain(), value_loss=chain()),
        (OLD,),
    ),
    "vc_ppo with one lambda is ppo": Relation(
        ("vc_ppo",), A.vc_ppo(lam=0.95, critic_lam=0.95), A.ppo().replace(kl_in_reward=chain())
    ),
    "vapo of endless rows has lambda one": Relation(
        ("vapo",),
        A.vapo(factor=1e12, likelihood=0.0),
        A.vapo(likelihood=0.0).replace(gae=gae(1.0, 1.0)),
    ),
    "bnpo of one group is the group mean": Relation(("bnpo",), A.bnpo(), means, (alone, one_group)),
    "dapo without filter and shaping is grpo with a higher clip": Relation(
        ("dapo",),
        A.dapo().replace(overlong_soft_penalty=chain(), drop_zero_spread_groups=chain()),
        tokens.replace(clip=clip(0.2, 0.28)),
    ),
    "gspo_token has gspo's gradient": Relation(
        ("gspo", "gspo_token"),
        A.gspo_token().replace(clip=clip(0.1, 0.1)),
        A.gspo().replace(clip=clip(0.1, 0.1)),
    ),
    "gmpo without a clip is gspo without one": Relation(
        ("gmpo",),
        A.gmpo().replace(geometric_mean_surrogate=geometric_mean_surrogate(WIDE, WIDE)),
        A.gspo().replace(clip=unclipped()),
    ),
    "luspo on equal lengths is gspo times the length": Relation(
        ("luspo",),
        A.luspo(),
        A.gspo().replace(clip=clip(2e-3, 2.5e-3)),
        (equal_lengths,),
        3.0,
    ),
    "cispo without bounds is the unclipped surrogate": Relation(
        ("cispo",),
        A.cispo().replace(detach_weight=detach_weight()),
        tokens.replace(trajectory=free),
    ),
    "sapo at ratio one": Relation(("sapo",), A.sapo(), grpo.replace(trajectory=chain(pg)), (OLD,)),
    "vespo at ratio one": Relation(
        ("vespo",), A.vespo(), tokens.replace(trajectory=chain(pg)), (OLD,)
    ),
    "gdpo of one reward is grpo whitened": Relation(
        ("gdpo",),
        A.gdpo().replace(batch_whiten_sequences=batch_whiten()),
        tokens.replace(reward=chain(tokens.reward, batch_whiten())),
        (binary,),
    ),
    "pass@1 is grpo with the population's deviation": Relation(
        ("passk_grpo",),
        A.passk_grpo(credit=analytic_pass_at_k(k=1)),
        tokens.replace(group_std_scale=group_std_scale(1e-6, 0)),
        (alone, binary),
    ),
    "nsr and psr are the halves of w_reinforce": Relation(
        ("nsr", "psr", "w_reinforce"),
        A.w_reinforce(positive=0.0).replace(aggregate=token_sum()),
        A.nsr().replace(aggregate=token_sum()),
        (alone, binary),
    ),
    "aspo at ratio one": Relation(
        ("aspo",),
        A.aspo().replace(kl_penalty=chain()),
        tokens.replace(trajectory=chain(pg)),
        (OLD,),
    ),
    "bapo that asks for no share clips at its first bounds": Relation(
        ("bapo",),
        A.bapo().replace(adaptive_clip=adaptive_clip(0.0)),
        tokens.replace(clip=clip(0.4, 0.2)),
    ),
    "dcpo that meets a prompt first is grpo": Relation(
        ("dcpo",),
        A.dcpo().replace(probability_clip=clip(0.2, 0.2)),
        grpo.replace(group_std_scale=group_std_scale(1e-12), aggregate=A.dcpo().aggregate),
        (alone,),
    ),
    "dppo without a region is cispo without bounds": Relation(
        ("dppo_tv", "dppo_kl"),
        A.dppo_tv().replace(
            detach_weight=detach_weight(), divergence_mask=divergence_mask(low=WIDE, high=WIDE)
        ),
        dr.replace(
            trajectory=chain(token_ratio("logp_behaviour"), unclipped()),
            aggregate=constant_length(16384),
        ),
    ),
    "clip_cov with an empty band is its clip": Relation(
        ("clip_cov",),
        A.clip_cov().replace(covariance_clip=covariance_clip(2e-4, 1.0, 1.0)),
        tokens.replace(clip=clip(1.0, 1.0)),
    ),
    "kl_cov without a coefficient is unclipped": Relation(
        ("kl_cov",),
        A.kl_cov().replace(covariance_clip=covariance_penalty(2e-4, 0.0)),
        tokens.replace(trajectory=free),
    ),
    "all quantiles of the entropy are dapo": Relation(
        ("entropy_top_quantile",),
        A.entropy_top_quantile().replace(entropy_quantile_mask=entropy_quantile_mask(1.0)),
        A.dapo(),
    ),
    "an entropy that was never measured pays no bonus": Relation(
        ("adaptive_entropy",), A.adaptive_entropy(), tokens
    ),
    "two_sided with a high cap is grpo": Relation(
        ("two_sided",),
        A.two_sided().replace(ratio_cap=ratio_cap(WIDE)),
        A.grpo(kl=0.001),
    ),
    "asymre without a shift is the group mean": Relation(
        ("asymre",),
        A.asymre(shift=0.0),
        dr.replace(trajectory=chain(pg), aggregate=sequence_sum_mean()),
    ),
    "rec weighed by the ratio under a one-side mask is the clip": Relation(
        ("rec",), A.rec(detach_weight(), one_side_mask(0.2, 0.2)), means
    ),
    "a sampler that agrees needs no truncated weight": Relation(
        ("tis",), A.tis(), A.grpo(), (sampled("logp_old"),)
    ),
    "nor a masked one": Relation(("mis",), A.mis(), A.grpo(), (sampled("logp_old"),)),
    "nor one by token": Relation(("icepop",), A.icepop(), A.grpo(), (sampled("logp_old"),)),
    "nor a second ratio": Relation(
        ("decoupled_ppo",), A.decoupled_ppo(), A.ppo(), (sampled("logp_old"),)
    ),
    "a mask that nothing reaches is none": Relation(
        ("opsm",),
        A.opsm().replace(offpolicy_sequence_mask=offpolicy_sequence_mask(WIDE)),
        A.grpo(),
    ),
    "the ratio-weighted k3 at ratio one has k2's gradient": Relation(
        ("unbiased_kl",),
        A.unbiased_kl(),
        A.grpo().replace(kl_penalty=kl_penalty(k2, 0.04)),
        (OLD,),
    ),
    "dro at the reference, against no value, is the return's gradient": Relation(
        ("dro",),
        A.dro(beta=0.7),
        A.reinforce(),
        (alone, REF, lambda b, o: (b, dataclasses.replace(o, columns={"value": 0 * o.logp}))),
        0.7,
    ),
    "rebel of pairs is gvpo four times": Relation(
        ("rebel", "gvpo"), A.rebel(eta=2.0), A.gvpo(beta=0.5), (pairs,), 4.0
    ),
    "kimi_pmd at the old policy is the group mean's gradient": Relation(
        ("kimi_pmd",),
        A.kimi_pmd(),
        dr.replace(trajectory=chain(pg), aggregate=sequence_sum_mean()),
        (alone, OLD),
    ),
    "a_star_po at the reference regresses on R less V*": Relation(
        ("a_star_po",),
        A.a_star_po(beta=0.3),
        A.a_star_po().replace(trajectory=chain(pg), aggregate=sequence_sum_mean()),
        (alone, REF),
        0.6,
    ),
    "flowrl on equal lengths: a third of log Z's gradient is each token's": Relation(
        ("flowrl",), A.flowrl(), A.flowrl(), (equal_lengths,)
    ),
    "spo that meets all prompts first is the whitened return": Relation(
        ("spo_single_stream",),
        A.spo_single_stream(),
        A.spo_single_stream().replace(beta_tracker=chain()),
    ),
    "prime without its process is whitened rloo": Relation(
        ("prime",),
        A.prime(process=0.0, outcome=1.0),
        tokens.replace(reward=chain(outcome_return(), leave_one_out_baseline(), batch_whiten())),
        (alone,),
    ),
    "two answers: the vote and its share are normalised alike": Relation(
        ("ttrl", "empo"),
        A.empo().replace(group_std_scale=group_std_scale(1e-12)),
        A.ttrl().replace(group_std_scale=group_std_scale(1e-12)),
        (alone, column("answer", right_or_wrong)),
    ),
    "a tree of single rows compares them with their group": Relation(
        ("treerpo",),
        A.treerpo().replace(tree_backup=tree_backup(1e-6, sibling_spread, ddof=1, drop=False)),
        tokens,
        (alone, equal_lengths, own_nodes),
    ),
    "and has one level": Relation(
        ("treepo",),
        A.treepo().replace(batch_whiten=chain(), dual_clip=chain()),
        means.replace(clip=clip(0.2, 0.28)),
        (alone, own_nodes),
    ),
    "and shares no token": Relation(("arpo",), A.arpo(), grpo, (alone, own_nodes)),
    "gigpo without its steps is grpo": Relation(
        ("gigpo",), A.gigpo(weight=0.0), A.grpo(kl=0.01).replace(aggregate=token_mean())
    ),
    "mt_grpo of one turn is grpo": Relation(
        ("mt_grpo",),
        A.mt_grpo(),
        tokens.replace(group_std_scale=group_std_scale(1e-4)),
        (alone, equal_lengths),
    ),
    "turn_ppo of one-token turns is ppo": Relation(
        ("turn_ppo",),
        A.turn_ppo().replace(value_loss=chain()),
        A.ppo(kl=0.0, gamma=0.99, lam=0.9).replace(
            kl_in_reward=chain(), batch_whiten=chain(), value_loss=chain()
        ),
        (token_turns,),
    ),
    "bi-level GAE of one turn is the return less the value": Relation(
        ("bi_level_gae",),
        A.bi_level_gae(),
        A.bi_level_gae().replace(bi_level_gae=gae(1.0, 1.0)),
        (equal_lengths,),
    ),
    "starpo is grpo with a higher clip": Relation(
        ("starpo",), A.starpo(), grpo.replace(clip=clip(0.2, 0.28))
    ),
    "gkd's divergence is weighed by tokens": Relation(
        ("gkd",), A.gkd(), A.gkd(), (), column="jsd_teacher"
    ),
    "minillm sampled from the old policy has its ratio to it": Relation(
        ("minillm",),
        A.minillm(),
        A.minillm().replace(token_ratio=token_ratio()),
        (sampled("logp_old"),),
    ),
    "opd at the sampler is the k2 penalty to the teacher": Relation(
        ("opd",),
        A.opd(coefficient=0.3),
        tokens.replace(trajectory=chain(kl_penalty(k2, 0.3, "logp_teacher"))),
        (alone, OLD, sampled("logp_old")),
    ),
    "iw_opd without gain is opd at ratio one": Relation(
        ("iw_opd",), A.iw_opd(gain=0.0), A.opd(), (OLD, sampled("logp_old"))
    ),
    "sdpo at ratio one is the k2 penalty to its teacher": Relation(
        ("sdpo",),
        A.sdpo(),
        tokens.replace(trajectory=chain(kl_penalty(k2, 1.0, "logp_teacher"))),
        (OLD,),
    ),
    "gold of one-token spans does not read the text": Relation(
        ("gold",),
        A.gold(),
        A.gold(),
        (column("span", lambda b: np.where(b.action_mask, np.arange(b.turn.shape[1]), -1)),),
        column="sorted_prob",
    ),
    "grpo_opd without a teacher is grpo": Relation(
        ("grpo_opd",), A.grpo_opd(coefficient=0.0), tokens
    ),
    "in the loss too": Relation(("grpo_opd",), A.grpo_opd(coefficient=0.0, level="loss"), tokens),
    "in the reward too": Relation(
        ("grpo_opd",), A.grpo_opd(coefficient=0.0, level="reward"), tokens
    ),
    "ipo at the reference is a multiple of dpo": Relation(
        ("dpo", "ipo", "online_dpo"), A.ipo(), A.dpo(), (alone, REF), None
    ),
}


# ---------------------------------------------------------------- the comparison


@functools.cache
def drawn(names: tuple[str, ...]) -> Trajectories:
    batch = random_trajectories(11, columns=names)
    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, batch)


def case(alg: Algorithm, relation: Relation) -> Case:
    both = {*needs(relation.left), *needs(relation.right), "logp_old", "logp_ref", "logp_teacher"}
    batch = drawn(tuple(sorted(both - {*RECORDED, "returns"})))
    every = {name_of(w): w for side in (relation.left, relation.right) for w in wants(side)}
    outputs = random_outputs(3, batch, every.values())
    own = {name_of(want) for want in wants(alg)}
    columns = {name: x for name, x in outputs.columns.items() if name in own}
    outputs = dataclasses.replace(outputs, columns=columns)
    for change in relation.on:
        batch, outputs = change(batch, outputs)
    return Case(alg=alg, trajectories=batch, outputs=outputs)


def gradient(alg: Algorithm, relation: Relation) -> np.ndarray:
    out = measure(case(alg, relation)).gradient
    return np.asarray(out.logp if relation.column == "logp" else out.columns[relation.column])


@pytest.mark.parametrize("name", RELATIONS)
def test_the_relation_holds(name):
    relation = RELATIONS[name]
    with jax.enable_x64(True):
        left, right = gradient(relation.left, relation), gradient(relation.right, relation)
    factor = relation.factor
    if factor is None:
        factor = np.linalg.norm(left) / np.linalg.norm(right)
    assert np.abs(left).max() > 0
    np.testing.assert_allclose(left, factor * right, rtol=0, atol=1e-7 * np.abs(left).max())


def test_log_z_has_the_sum_of_its_tokens():
    relation = RELATIONS["flowrl on equal lengths: a third of log Z's gradient is each token's"]
    with jax.enable_x64(True):
        out = measure(case(relation.left, relation)).gradient
    token = np.asarray(out.logp)[:, 2:5]
    np.testing.assert_allclose(token, np.asarray(out.columns["log_z"])[:, None] / 3 * np.ones(3))
    assert np.abs(token).max() > 0


def test_every_method_stands_in_a_relation():
    named = {key for relation in RELATIONS.values() for key in relation.keys}
    assert named == set(A.__all__)
