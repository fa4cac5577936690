"""Settings of every test: set before jax is imported.

Eight virtual CPU devices, for the laws on devices. What takes longer to compile than it saves here
is off (`compiling`), and so are the source lines that JAX notes for every operation. Slow tests
have the fusions of users, whose rounding some of them compare; the main job is compiled as users
have it in all.
"""

import os

from compiling import FLAGS, QUICKER

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", *FLAGS]
)

import jax
from hypothesis import settings

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")


def pytest_configure(config):
    """No backend is there yet, which would have read the flags."""
    if config.option.markexpr == "not slow":
        os.environ["XLA_FLAGS"] = " ".join([os.environ["XLA_FLAGS"], *QUICKER])
