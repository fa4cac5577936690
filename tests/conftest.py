"""Settings of every test: set before jax is imported.

Eight virtual CPU devices, for the laws on devices. Tests compile much and compute little: the
backend's optimiser is off, and so is what takes longer to compile than it saves here, its emitters
of fusions (four tenths of all time), its threads that compile one program in parts, and the source
lines that JAX notes for every operation. The slow tests of the main job run without any of this.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_collective_call_terminate_timeout_seconds=300",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)

import jax
from hypothesis import settings

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")
