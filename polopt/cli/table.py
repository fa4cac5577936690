"""From what a user types to the thing meant: the table of methods, and names in files."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polopt.errors import PoloptError, UsageError, did_you_mean

if TYPE_CHECKING:
    from polopt.compose import Algorithm

METHODS: dict[str, tuple[str, str]] = {
    "reinforce": ("polopt.algorithms:reinforce", "the policy gradient itself: raw return"),
    "a2c": ("polopt.algorithms:a2c", "a learned critic as baseline, one update per rollout"),
    "ppo": ("polopt.algorithms:ppo", "critic and clipped ratios: several updates per rollout"),
    "rloo": ("polopt.algorithms:rloo", "baseline: mean of the other completions of the prompt"),
    "remax": ("polopt.algorithms:remax", "baseline: reward of the greedy completion"),
    "reinforce_pp": ("polopt.algorithms:reinforce_pp", "no groups: credit whitened over the batch"),
    "grpo": ("polopt.algorithms:grpo", "credit relative to the group's mean and spread, no critic"),
    "dr_grpo": ("polopt.algorithms:dr_grpo", "GRPO without its length and difficulty biases"),
    "dapo": ("polopt.algorithms:dapo", "clip-higher, dynamic sampling, token mean, length shaping"),
    "gspo": ("polopt.algorithms:gspo", "one ratio per sequence, as the reward is per sequence"),
    "cispo": ("polopt.algorithms:cispo", "clips the weight, not the gradient: no token is dropped"),
}
"""Key -> (factory as module:name, purpose). Everything else about a method is in its factory."""


def load_algorithm(spec: str) -> "Algorithm":
    """Build the algorithm that `spec` names: a key of `METHODS`, file.py:name or module:name.

    A factory is called without arguments; an `Algorithm` is taken as it is.
    """
    from polopt.compose import Algorithm

    if spec in METHODS:
        return load_object(METHODS[spec][0], "algorithm")()
    if ":" not in spec:
        hint = did_you_mean(spec, METHODS) or "; polopt methods lists them"
        example = "; your own is file.py:name" if spec.endswith(".py") else hint
        raise UsageError(f"no method {spec!r}{example}")
    found = load_object(spec, "algorithm")
    algorithm = found() if callable(found) else found
    if not isinstance(algorithm, Algorithm):
        raise PoloptError(f"algorithm {spec!r} gives a {type(algorithm).__name__}, "
                          "not a polopt.Algorithm")
    return algorithm


def load_object(spec: str, what: str) -> Any:
    """Import ``file.py:name`` or ``module:name``; `what` names the setting in errors.

    The file's folder, or the current one, joins the end of the import path, so that the code
    finds its neighbours. The file is read anew each time.
    """
    source, colon, name = spec.rpartition(":")
    if not (source and colon and name):
        raise UsageError(f"{what} {spec!r} is not of the form file.py:name or module:name")
    module = _load_file(Path(source), what) if source.endswith(".py") else _load(source, what)
    if not hasattr(module, name):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise UsageError(f"{what}: {source} has no {name!r}{did_you_mean(name, names)}")
    return getattr(module, name)


def _load(name: str, what: str) -> Any:
    _extend_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise  # something that the module itself imports
        raise UsageError(f"{what}: there is no module {name!r}") from error


def _load_file(path: Path, what: str) -> Any:
    if not path.is_file():
        raise UsageError(f"{what}: there is no file {path}")
    _extend_path(path.resolve().parent)
    name = f"polopt_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{what}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    return module


def _extend_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
