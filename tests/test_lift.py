import numpy as np
import pytest
from single import objectives, one_token_rows

from polopt import Algorithm, PoloptError, chain, prepare, reward_piece, trajectory_piece
from polopt.reward import outcome_return, reward_to_go
from polopt.testing import LawBroken, check_laws
from polopt.trajectory import policy_gradient, token_ratio


@reward_piece
def shifted(sequence, group, *, by: float = 1.0):
    """Adds a number."""
    return sequence + by


@reward_piece
def labelled(sequence, group):
    """Reads the label of a group, which means nothing."""
    return sequence + group


@trajectory_piece
def squared(ratio, credit, *, pull: float = 0.5):
    """−(ratio − 1)² pulled by the credit."""
    return ratio * credit - pull * (ratio - 1) ** 2


def mine() -> Algorithm:
    return Algorithm(
        name="mine",
        reward=chain(outcome_return(), shifted(2.0)),
        trajectory=chain(token_ratio(), squared(0.25)),
    )


def test_a_plain_function_becomes_a_factory():
    assert repr(shifted(2.0)) == "shifted(by=2.0)"
    assert shifted(by=3) == shifted(3.0)
    assert shifted.card.purpose == "Adds a number."
    assert squared.card.reads == ("ratio",)
    with pytest.raises(PoloptError, match=r"squared\(\) has no argument 'pul'; did you mean"):
        squared(pul=1.0)


def test_the_lifted_reward_piece_acts_on_one_number_per_row():
    credit = prepare(mine(), one_token_rows([1.0, 4.0], logp_old=np.zeros(2)))[0].credit
    np.testing.assert_allclose(credit[:, 1], [3.0, 6.0])


def test_the_lifted_trajectory_piece_is_the_objective():
    terms, gradient, _ = objectives(
        token_ratio(), squared(0.25), log_ratio=np.log([1.5, 0.5]), credit=np.array([2.0, -1.0])
    )
    np.testing.assert_allclose(terms["policy"], [3 - 0.0625, -0.5 - 0.0625], rtol=1e-6)
    # d/dl = ratio * (credit - 2 pull (ratio - 1)), with the loss's sign
    np.testing.assert_allclose(gradient["logp"], [-1.5 * 1.75, 0.5 * 0.75], rtol=1e-5)


def test_a_lifted_piece_in_a_wrong_order_is_refused():
    with pytest.raises(PoloptError, match="shifted reads sequence, but what stands before"):
        Algorithm(reward=chain(reward_to_go(), shifted()), trajectory=chain(policy_gradient()))
    with pytest.raises(PoloptError, match="squared is a trajectory piece, not a reward piece"):
        Algorithm(reward=chain(outcome_return(), squared()), trajectory=chain(policy_gradient()))


def test_a_users_method_keeps_the_laws():
    laws = ["partition", "masks", "degenerate", "composition"]
    assert check_laws(mine, laws=laws) == tuple(laws)
    with pytest.raises(LawBroken, match="mine breaks the law 'partition': the loss is"):
        check_laws(mine().replace(shifted=labelled()), laws=["partition"])
