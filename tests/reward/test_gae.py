"""Two lambdas, and one that grows with the row."""

import numpy as np

from polopt import Trajectories
from polopt.reward import gae
from reward.handmade import near, run

VALUE = np.array([[9, 0.5, 0.25, 9, 0.75], [9, 0.5, 9, 9, 9]], np.float32)


def batch():
    """A row of three actions around an observation, and one of a single action."""
    return Trajectories.build(
        [[1]] * 2,
        [[2, 3, 4, 5], [2]],
        [1.0, 0.5],
        group=2,
        action_mask=[[True, True, False, True], [True]],
        columns={"value": VALUE},
    )


def test_the_critic_has_a_lambda_of_its_own():
    """δ is -0.25, 0.5, 0.25: the policy's credit at λ=1/2, the critic's target the return."""
    done = run(batch(), gae(1.0, 0.5, critic_lam=1.0))
    near(done.value[0, [1, 2, 4]], [0.0625, 0.625, 0.25])
    near(done.targets["returns"], [[0, 1, 1, 0, 1], [0, 0.5, 0, 0, 0]])
    plain = run(batch(), gae(1.0, 0.5)).targets["returns"]
    near(plain[0], [0, 0.5625, 0.875, 0, 1])


def test_equal_lambdas_are_one():
    one, two = run(batch(), gae(0.9, 0.5)), run(batch(), gae(0.9, 0.5, critic_lam=0.5))
    near(one.value, two.value)
    near(one.targets["returns"], two.targets["returns"])


def test_lambda_by_length():
    """At a factor of 2/3 three tokens have λ = 1/2; one token has 1 − 3/2, held at 0."""
    done = run(batch(), gae(1.0, length_factor=2 / 3))
    near(done.value[0, [1, 2, 4]], [0.0625, 0.625, 0.25])
    near(done.value[1, 1], 0.0)
    far = run(batch(), gae(1.0, length_factor=1e6))
    near(far.value[0], run(batch(), gae(1.0, 1.0)).value[0])  # identity 16 of the catalogue
