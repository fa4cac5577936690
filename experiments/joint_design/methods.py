"""DAPO's two sides, apart and together: four methods that differ in nothing else.

Each is `polopt train --algorithm experiments/joint_design/methods.py:NAME`.
"""

from polopt import Algorithm, Sampling, chain
from polopt.algorithms import dapo
from polopt.trajectory import clip


def both(*, max_length: float = 20480, cache: float = 4096) -> Algorithm:
    """Both sides repaired: DAPO as it is shipped."""
    return dapo(max_length=max_length, cache=cache).replace(name="both")


def reward_side(*, max_length: float = 20480, cache: float = 4096) -> Algorithm:
    """Only what is rewarded and sampled: dead groups sampled anew, long answers penalised."""
    return both(max_length=max_length, cache=cache).replace(name="reward_side", clip=clip(0.2, 0.2))


def trajectory_side() -> Algorithm:
    """Only what bounds the ratio: the upper bound raised from 0.2 to 0.28."""
    made = both()
    return made.replace(
        name="trajectory_side",
        overlong_soft_penalty=chain(),
        drop_zero_spread_groups=chain(),
        sampling=Sampling(group_size=made.sampling.group_size),
    )


def neither() -> Algorithm:
    """GRPO without a KL term, tokens weighed alike."""
    return trajectory_side().replace(name="neither", clip=clip(0.2, 0.2))
