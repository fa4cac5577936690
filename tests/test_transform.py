import dataclasses

import jax
import numpy as np
import pytest

from polopt import Algorithm, PoloptError, add, chain, piece
from polopt.divergence import k1, k3
from polopt.reward import (
    gae,
    group_mean_baseline,
    group_std_scale,
    kl_in_reward,
    outcome_return,
    overlong_soft_penalty,
)
from polopt.trajectory import (
    clip,
    detach_weight,
    entropy_bonus,
    kl_penalty,
    policy_gradient,
    sequence_ratio,
    token_ratio,
)
from polopt.transform import replace_link, walk


def test_numbers_are_leaves_and_everything_else_is_structure():
    made = kl_penalty(k3, 0.04)
    assert jax.tree.leaves(made) == [0.04]
    assert dict(made.options) == {"estimator": k3, "to": "logp_ref", "weighted": False}
    assert jax.tree.leaves(group_std_scale(1e-4, ddof=0)) == [1e-4]
    assert repr(made) == "kl_penalty(coefficient=0.04, estimator=k3, to='logp_ref', weighted=False)"


def test_equal_pieces_are_equal_by_value_and_by_structure():
    assert clip(0.2, 0.28) == clip(low=0.2, high=0.28) == clip(0.2, np.float64(0.28))
    assert clip(0.2, 0.28) != clip(0.2, 0.2)
    structure = jax.tree.structure(clip(0.2, 0.28))
    assert structure == jax.tree.structure(clip(9.0, 9.0))
    assert hash(structure) == hash(jax.tree.structure(clip()))
    assert jax.tree.structure(kl_penalty(k1)) != jax.tree.structure(kl_penalty(k3))


def test_a_number_that_is_none_is_structure():
    assert jax.tree.leaves(detach_weight(low=None, high=0.28)) == [0.28]
    assert jax.tree.structure(detach_weight(high=0.28)) != jax.tree.structure(
        detach_weight(low=0.2, high=0.28)
    )
    assert detach_weight().arguments().get("low") is None


def test_options_that_name_a_column_are_needs():
    assert kl_penalty(to="logp_teacher").needs == ("logp_teacher",)
    assert gae().needs == ("value",)
    assert gae(bootstrap="bootstrap_value").needs == ("value", "bootstrap_value")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: clip(hihg=0.3),
            r"clip\(\) has no argument 'hihg'; did you mean 'high'\? "
            r"\(it takes low, high\)",
        ),
        (
            lambda: outcome_return(gamma=1.0),
            r"outcome_return\(\) has no argument 'gamma' "
            r"\(it takes none\)",
        ),
        (lambda: clip(0.1, 0.2, 0.3), r"clip\(\): too many positional arguments"),
        (lambda: add(), r"add\(\) needs at least one branch"),
        (lambda: add(clip(), weights=(1.0, 2.0)), r"add\(\) has 1 branches but 2 weights"),
        (lambda: chain(clip), "a chain is made of pieces, chains and sums; got"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(PoloptError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_chain_is_associative_with_an_identity():
    a, b, c = clip(0.1, 0.1), clip(0.2, 0.2), clip(0.3, 0.3)
    flat = chain(a, b, c)
    assert flat.names == ("clip", "clip_2", "clip_3")
    assert chain(chain(a, b), c) == flat == chain(a, chain(b, c)) == chain(a, chain(), b, c)
    assert chain(flat) == chain(chain(), flat) == flat
    assert chain() == chain(chain())


def test_names_given_by_hand_are_kept():
    made = chain(outcome_return(), first=clip(), stage_1=clip(), stage_2=clip())
    assert made.names == ("outcome_return", "first", "stage_1", "stage_2")
    assert chain(made, clip()).names == (*made.names, "clip")
    assert chain(chain(), x=chain(a=clip(), b=clip())).names == ("a", "b")


def test_every_link_has_a_path_of_its_own():
    made = chain(token_ratio(), add(clip(), chain(clip(), kl_penalty())), clip())
    assert [path for path, _ in walk(made, "trajectory")] == [
        "trajectory/token_ratio",
        "trajectory/add/clip",
        "trajectory/add/chain/clip",
        "trajectory/add/chain/kl_penalty",
        "trajectory/clip",
    ]


def test_replace_reaches_into_sums_and_counts():
    made = chain(token_ratio(), add(clip(), chain(clip(), kl_penalty())))
    changed, count = replace_link(made, "clip", detach_weight())
    assert count == 2
    assert [t.name for _, t in walk(changed)] == [
        "token_ratio",
        "detach_weight",
        "detach_weight",
        "kl_penalty",
    ]
    assert replace_link(made, "nothing", clip()) == (made, 0)


REWARD, TRAJECTORY = chain(outcome_return()), chain(policy_gradient())


@pytest.mark.parametrize(
    ("reward", "trajectory", "message"),
    [
        (
            chain(group_mean_baseline(), outcome_return()),
            TRAJECTORY,
            "wrong order on the reward side: group_mean_baseline reads sequence, but what stands "
            "before it leaves reward",
        ),
        (
            chain(gae(), group_std_scale()),
            TRAJECTORY,
            "group_std_scale reads sequence, but what stands before it leaves value",
        ),
        (
            chain(outcome_return(), kl_in_reward()),
            TRAJECTORY,
            "kl_in_reward reads reward, but what stands before it leaves sequence",
        ),
        (chain(), TRAJECTORY, r"the reward side ends without a return: add outcome_return\(\)"),
        (REWARD, chain(clip(), token_ratio()), "clip reads ratio, but .* leaves logp"),
        (
            REWARD,
            chain(token_ratio(), clip(), sequence_ratio()),
            "sequence_ratio reads logp, but .* leaves policy",
        ),
        (REWARD, chain(token_ratio()), "the trajectory side has no objective"),
        (chain(clip()), TRAJECTORY, "clip is a trajectory piece, not a reward piece"),
        (
            REWARD,
            chain(outcome_return()),
            "outcome_return is a reward piece, not a trajectory piece",
        ),
        (
            chain(add(kl_in_reward(), overlong_soft_penalty()), outcome_return()),
            TRAJECTORY,
            r"a branch of add\(\) on the reward side leaves reward: only credits can be summed",
        ),
        (
            REWARD,
            chain(add(token_ratio(), sequence_ratio()), clip()),
            r"a branch of add\(\) on the trajectory side leaves ratio: only objectives can be "
            "summed",
        ),
    ],
)
def test_a_wrong_order_is_refused_naming_the_pieces(reward, trajectory, message):
    with pytest.raises(PoloptError, match=message):
        Algorithm(reward=reward, trajectory=trajectory)


def test_a_bonus_may_stand_anywhere_and_in_a_sum():
    for trajectory in (
        chain(entropy_bonus(), policy_gradient()),
        chain(token_ratio(), entropy_bonus(), clip()),
        chain(add(chain(token_ratio(), clip()), entropy_bonus())),
    ):
        assert Algorithm(reward=REWARD, trajectory=trajectory)


def test_a_users_piece_has_the_card_of_its_docstring():
    @piece("reward", reads="sequence", formula="2R", repairs=("no_baseline",))
    def twice(credit, trajectories, *, by: float = 2.0):
        """Doubles.

        Not on the card.
        """
        return dataclasses.replace(credit, sequence=by * credit.sequence)

    assert twice.card.purpose == "Doubles."
    assert (twice.card.side, twice.card.couples) == ("reward", "none")
    assert jax.tree.map(lambda x: 2 * x, twice()).hyper.by == 4.0
