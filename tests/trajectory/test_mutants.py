"""What the mutation check found untested on the trajectory side (`experiments/mutation`)."""

import dataclasses

import jax
import numpy as np
import pytest
from single import objectives, one_token_rows

from polopt import (
    Algorithm,
    PolicyOutputs,
    Stop,
    Trajectories,
    advance,
    chain,
    init,
    loss,
    objective,
    piece,
    prepare,
)
from polopt.reward import drop_truncated, gae, outcome_return
from polopt.trajectory import (
    adaptive_clip,
    adaptive_entropy_bonus,
    binary_kl,
    covariance_clip,
    divergence_loss,
    divergence_mask,
    masked_is,
    pairwise_logistic,
    per_sequence,
    per_sequence_mean,
    per_token,
    policy_gradient,
    process_reward_loss,
    sequence_ratio_token_grad,
    squared_regression,
    tapered_weight,
    token_ratio,
    truncated_is,
    turn_ratio,
    two_side_mask,
    unclipped,
    value_loss,
)


def near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_ratio_reports_the_kl_to_the_old_policy():
    log_ratio = np.array([0.5, -0.5, 0.0, 1.0])
    info = objectives(token_ratio(), unclipped(), log_ratio=log_ratio, credit=np.ones(4))[2]
    near(info["policy/kl"].value(), np.mean(np.exp(log_ratio) - 1 - log_ratio))
    near(info["policy/ratio_max"].max, np.e)


def test_a_row_of_one_token_has_its_own_gradient_through_the_log_ratio():
    log_ratio, credit = np.array([0.5, -0.25]), np.array([1.0, 0.5])
    links = sequence_ratio_token_grad(), squared_regression(1.0, 0.5)
    terms, gradient, _ = objectives(*links, log_ratio=log_ratio, credit=credit)
    near(terms["policy"], -((credit - log_ratio) ** 2) / 2)
    near(gradient["logp"], log_ratio - credit)


def test_a_turns_ratio_is_that_of_its_trained_tokens():
    made = Trajectories.build(
        [[1]], [[5, 6, 7]], [1.0], group=1, columns={"logp_old": np.full((1, 4), -1.0, np.float32)}
    )
    on = dataclasses.replace(made, action_mask=np.array([[False, True, False, True]]))
    alg = Algorithm(reward=chain(outcome_return()), trajectory=chain(turn_ratio(), unclipped()))
    logp = np.array([[0.0, -0.5, -9.0, -0.9]], np.float32)
    info = jax.jit(objective(alg))(PolicyOutputs(logp=logp), on)[1]
    near(info["policy/ratio_max"].max, np.exp((0.5 + 0.1) / 2))


def test_a_row_in_no_pair_has_no_part_in_the_preference():
    log_ratio, credit = np.array([0.4, -0.2, 0.3]), np.array([1.0, -1.0, 0.0])
    links = token_ratio(), pairwise_logistic(2.0)
    terms, gradient, _ = objectives(*links, log_ratio=log_ratio, credit=credit)
    half = -np.log1p(np.exp(-2 * 0.6)) / 2
    near(terms["policy"], [half, half, 0])
    slope = 2 / (1 + np.exp(2 * 0.6))
    near(gradient["logp"], [-slope, slope, 0])


def test_bounds_that_move_stop_at_their_ends():
    """Nothing has positive credit, so both are moved as far as they go: less than a whole step."""
    link = adaptive_clip(low=0.6, low_end=0.61, low_step=0.04, high=1.2, high_end=1.23)
    log_ratio, credit = np.zeros(2), np.array([-1.0, -2.0])
    info = objectives(token_ratio(), link, log_ratio=log_ratio, credit=credit)[2]
    near([info["policy/clip_low"].value(), info["policy/clip_high"].value()], [0.61, 1.23])


def test_a_divergence_is_weighed_by_a_bounded_ratio_without_its_gradient():
    ratio, said = np.array([0.5, 1.25, 4.0]), np.array([0.1, 0.2, 0.3])
    terms, gradient, _ = objectives(
        token_ratio(),
        divergence_loss(2.0, bound=1.5),
        log_ratio=np.log(ratio),
        credit=np.ones(3),
        outputs={"jsd_teacher": said},
    )
    weight = np.array([0.5, 1.25, 1.5])
    near(terms["distillation"], -2 * weight * said)
    near(gradient["jsd_teacher"], 2 * weight)
    assert not gradient["logp"].any()


def recorded_weight(link, on, *filters):
    """f32[N,T]: the weight that a correction computes before the update."""
    reward, trajectory = chain(outcome_return(), *filters), chain(policy_gradient(), link)
    alg = Algorithm(reward=reward, trajectory=trajectory)
    (made,) = jax.jit(lambda on: prepare(alg, on)[0].rows.before)(on).values()
    return made["weight"]


def rows_of_ratio(log_ratio):
    """One-token rows that the trainer found likelier than the sampler, by a log-ratio each."""
    on = one_token_rows(np.ones(len(log_ratio)), logp_old=np.full(len(log_ratio), -20.0))
    sampler = np.zeros_like(on.logp_sampler)
    sampler[:, 1] = -20 - log_ratio
    return dataclasses.replace(on, logp_sampler=sampler, log_keep=0 * sampler)


@pytest.mark.parametrize("level", [per_token, per_sequence])
def test_weights_that_are_all_small_are_still_normalised(level):
    """Every ratio is 1e-7 or half of it: their mean is 1, however small they are."""
    ratio = np.array([1e-7, 1e-7, 5e-8, 5e-8])
    link = truncated_is(level=level, normalise=True)
    weight = recorded_weight(link, rows_of_ratio(np.log(ratio)))[:, 1]
    # The product over a row is bounded from below by exp(-10).
    near(weight, ratio / ratio.mean() if level is per_token else np.ones(4))


def test_a_ratio_at_a_bound_is_inside():
    """Bounds of zero width: only the ratio one is kept, on either side of it none."""
    on = rows_of_ratio(np.array([0.0, 0.1, -0.1]))
    near(recorded_weight(masked_is(low=1.0, high=1.0), on)[:, 1], [1, 0, 0])


def test_a_filter_cannot_make_a_prompt_token_an_action():
    """The mean log-ratio of a row is that of its two actions, whatever a filter keeps."""

    @piece("reward")
    def keep_all(credit, trajectories):
        return dataclasses.replace(credit, keep=np.ones(trajectories.action_mask.shape, bool))

    old = np.array([[0.0, 0.3, 0.1]], np.float32)
    on = Trajectories.build([[1]], [[2, 3]], [1.0], group=1, columns={"logp_old": old})
    weight = recorded_weight(truncated_is(level=per_sequence_mean), on, keep_all())
    near(weight[:, 1:], np.full((1, 2), np.exp((0.3 + 0.1) / 2)))


def test_a_mask_keeps_its_bounds_and_reports_what_it_drops():
    """Bounds of zero width: only the ratio one is kept, on either side of it none."""
    log_ratio = np.array([0.0, 0.1, -0.1, 0.0, 0.1])
    terms, gradient, info = objectives(
        token_ratio(), unclipped(), two_side_mask(0.0, 0.0), log_ratio=log_ratio, credit=np.ones(5)
    )
    near(terms["policy"], [1, 0, 0, 1, 0])
    near(gradient["logp"], [-1, 0, 0, -1, 0])
    near(info["policy/masked_fraction"].value(), 3 / 5)


def test_a_divergence_at_its_bound_is_not_beyond_it():
    link = divergence_mask(lambda p, q: 0 * p + 0.25, low=0.25, high=0.25)
    moved = {"log_ratio": np.array([0.1, -0.1]), "credit": np.array([1.0, -1.0])}
    near(
        objectives(token_ratio(), unclipped(), link, **moved)[1]["logp"],
        -np.exp([0.1, -0.1]) * [1, -1],
    )
    beyond = divergence_mask(lambda p, q: 0 * p + 0.25, low=0.24, high=0.24)
    assert not objectives(token_ratio(), unclipped(), beyond, **moved)[1]["logp"].any()


def test_the_divergence_from_a_sure_token_is_large_and_finite():
    near(binary_kl(np.float32(1.0), np.float32(0.5)), 0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 1e-8))


@pytest.mark.parametrize(
    ("tokens", "low", "high"), [(1, -5.0, -0.01), (2, 0.0, 1.0), (2, -1.0, 0.0)]
)
def test_what_does_not_vary_has_covariance_zero_and_the_band_is_open(tokens, low, high):
    """One token, or two of equal credit: zero is outside the band, at an end of it too."""
    links = token_ratio(), unclipped(), covariance_clip(1.0, low, high)
    alg = Algorithm(reward=chain(outcome_return()), trajectory=chain(*links))

    @jax.jit
    def dropped(on, logp):
        prepared, _ = prepare(alg, on, key=jax.random.key(0))
        return loss(alg, PolicyOutputs(logp=logp), prepared)[1]["policy/masked_fraction"].value()

    on = one_token_rows(np.ones(tokens), logp_old=np.full(tokens, -1.0))
    logp = np.array([[0.0, -1.0], [0.0, -2.0]], np.float32)[:tokens]
    assert float(dropped(on, logp)) == 0


def test_the_entropy_bonus_waits_for_low_entropy_and_grows_while_it_lasts():
    """Nothing before the first measurement; then by 0.1 up or down, and not beyond 0.45."""
    bonus = adaptive_entropy_bonus(start=0.3, target=1.0, step=0.1, low=0.0, high=0.45)
    alg = Algorithm(reward=chain(outcome_return()), trajectory=chain(policy_gradient(), bonus))
    on = one_token_rows(np.ones(2), logp_old=np.full(2, -1.0))

    @jax.jit
    def update(state, entropy):
        prepared, state = prepare(alg, on, state=state)
        outputs = PolicyOutputs(logp=on.columns["logp_old"], columns={"entropy": entropy})
        info = loss(alg, outputs, prepared)[1]
        return info["objective/entropy"].sum, advance(alg, state, info)

    state, objectives = init(alg), []
    measured = [0.5, 1.0, 2.0, 2.0, 0.5, 0.5]
    for entropy in measured:
        objective, state = update(state, np.full((2, 2), entropy, np.float32))
        objectives.append(float(objective))
    # Coefficients 0.3, 0.4, 0.45, 0.35, 0.25, 0.35, each used if the entropy before it was low.
    near(objectives, [0, 0.4 * 1.0, 0.45 * 2.0, 0, 0, 0.35 * 0.5])


def test_credit_zero_is_no_negative_credit():
    """It has no gradient, but its weight is one, which is not its ratio."""
    moved = {"log_ratio": np.log([0.5, 0.5]), "credit": np.array([0.0, -1.0])}
    info = objectives(token_ratio(), tapered_weight(), **moved)[2]
    near(info["policy/clip_fraction"].value(), 1 / 2)


def test_a_row_that_a_filter_took_out_does_not_train_the_critic():
    value = np.zeros((2, 2), np.float32)
    on = one_token_rows(np.ones(2), value=value[:, 1], logp_old=np.full(2, -1.0))
    on = dataclasses.replace(on, stop=np.array([Stop.EOS, Stop.LENGTH], np.int32))
    alg = Algorithm(
        reward=chain(gae(), drop_truncated()),
        trajectory=chain(token_ratio(), unclipped(), value_loss()),
    )
    members = jax.jit(lambda on: prepare(alg, on)[0].rows.members["value"])(on)
    assert (np.asarray(members) > 0).tolist() == [[False, True], [False, False]]


def test_an_outcome_at_the_bar_is_wrong():
    old, said = np.zeros(3), np.array([1.0, 1.0, 1.0])
    terms, _, _ = objectives(
        token_ratio(),
        unclipped(),
        process_reward_loss(0.5, 2.0, above=1.0),
        log_ratio=old,
        credit=np.array([0.5, 1.0, 1.5]),
        columns={"logp_ref": old},
        outputs={"logp_prm": said},
    )
    near(terms["process"], -2 * np.log1p(np.exp([0.5, 0.5, -0.5])))
