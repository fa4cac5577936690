"""Starting a run's processes. Nothing here imports jax: it must outlive what jax aborts."""
