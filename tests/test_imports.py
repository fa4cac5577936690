"""The direction of imports: the pure centre knows jax, numpy, chex and itself."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "polopt"
CENTRE = (
    "types",
    "algorithm",
    "compose",
    "modifiers",
    "aggregate",
    "numerics",
    "transform",
    "lift",
    "divergence",
    "columns",
    "build",
    "errors",
    "reward",
    "trajectory",
    "algorithms",
)
ALLOWED = {"jax", "numpy", "chex", *sys.stdlib_module_names}


def files_of(name: str) -> list[pathlib.Path]:
    folder = ROOT / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(file: pathlib.Path) -> set[str]:
    """Every module that a file names in an import, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
            if node.module == "polopt":
                found |= {f"polopt.{alias.name}" for alias in node.names}
    return found - {"polopt"}


@pytest.mark.parametrize("name", CENTRE)
def test_the_centre_imports_nothing_but_itself(name):
    for file in files_of(name):
        for module in imported(file):
            top, _, rest = module.partition(".")
            own = top == "polopt" and rest.split(".")[0] in CENTRE
            assert own or top in ALLOWED, f"{file.name} imports {module}"


def test_the_laws_need_no_more_than_the_centre():
    for file in files_of("testing"):
        for module in imported(file):
            top, _, rest = module.partition(".")
            own = top == "polopt" and rest.split(".")[0] in (*CENTRE, "testing")
            assert own or top in ALLOWED, f"{file.name} imports {module}"


def test_importing_polopt_brings_no_jax_and_knows_its_names():
    code = (
        "import sys, polopt; assert 'jax' not in sys.modules and 'numpy' not in sys.modules; "
        "assert {'prepare', 'loss', 'chain', 'Algorithm', 'testing'} <= set(dir(polopt)); "
        "print(polopt.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT.parent
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_every_public_name_is_there():
    import polopt

    missing = [name for name in polopt.__all__ if not hasattr(polopt, name)]
    assert missing == []
    with pytest.raises(AttributeError, match="no attribute 'prepear'"):
        _ = polopt.prepear
