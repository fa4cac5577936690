"""Settings of every test: set before jax is imported.

Eight virtual CPU devices, for the laws on devices. The backend's optimiser is off: tests compile
much and compute little.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_collective_call_terminate_timeout_seconds=300",
        "--xla_backend_optimization_level=0",
    ]
)

import jax
from hypothesis import settings

jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")
