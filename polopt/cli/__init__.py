"""The command line: thin commands over the API, quick to start because they import late."""

from polopt.cli.app import main

__all__ = ["main"]
