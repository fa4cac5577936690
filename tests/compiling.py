"""How tests have XLA compile for the CPU: they compile much and compute little."""

from importlib.metadata import version

FLAGS = [
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",  # threads that compile one program in parts
]
# Four tenths of the fast tests' time. Later JAX does not know the flag, and ends at once.
QUICKER = ["--xla_cpu_use_fusion_emitters=false"] if version("jaxlib").startswith("0.10.") else []
