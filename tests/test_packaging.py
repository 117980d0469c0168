"""What the project installs, and that the rooms stay apart: each contract is seen to fail when it is broken."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "preprocessing", "training")
# fmt: off
VIOLATIONS = {
    # contract: (file that breaks it, what it imports)
    "preprocessing and training never import each other": ("training/rogue.py", "preprocessing"),
    "pipeline imports neither room": ("pipeline/rogue.py", "training"),
    "pipeline loads in a fraction of a second: no heavy libraries": ("pipeline/rogue.py", "zarr.storage"),
    "preprocessing never imports torch, mlflow or deepspeed": ("preprocessing/rogue.py", "torch"),
    "training never imports dask, and zarr or rasterio only to predict whole scenes": ("training/rogue.py", "rasterio"),
    "deepspeed is imported in training.zero only": ("training/rogue.py", "deepspeed"),
    "mlflow is imported in training.mlflow_client only": ("training/rogue.py", "mlflow.tracking"),
    "xformers is imported in training.attention only": ("training/rogue.py", "xformers.ops"),
    "fsspec is imported in training.remote only": ("training/rogue.py", "fsspec.core"),
    "scikit-learn is imported in training.plain only": ("training/rogue.py", "sklearn.svm"),
    "spyndex is imported in preprocessing.standard_indices only": ("preprocessing/rogue.py", "spyndex"),
    "what an export carries imports torch and safetensors only": ("training/spectral_backbone/rogue.py", "pipeline"),
}
# fmt: on


@pytest.fixture(scope="module")
def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def tree(folder: Path, **modules: str) -> Path:
    """Make a tiny project with the real contracts: one module `name` of each path in `modules`."""
    for package in (*PACKAGES, "training/spectral_backbone"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("")
    for path, text in modules.items():
        (folder / path).write_text(text)
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    run = "from importlinter.cli import lint_imports_command as lint; lint()"
    command = [sys.executable, "-c", run, "--config", "setup.cfg", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_every_contract_has_a_violation_here(settings: configparser.ConfigParser) -> None:
    names = {
        settings[section]["name"] for section in settings.sections() if section.startswith("importlinter:")
    }
    assert names == set(VIOLATIONS)


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_a_broken_contract_is_reported(tmp_path: Path, contract: str) -> None:
    path, imported = VIOLATIONS[contract]
    # inside a function too: a late import is an import
    done = lint_imports(tree(tmp_path, **{path: f"def late():\n    import {imported}\n"}))
    assert done.returncode == 1
    assert re.search(rf"^{re.escape(contract)} BROKEN", done.stdout, re.MULTILINE), done.stdout


def test_the_one_file_for_each_library_is_allowed(tmp_path: Path) -> None:
    allowed = {
        "zero": "deepspeed",
        "mlflow_client": "mlflow",
        "attention": "xformers",
        "predict": "zarr, rasterio",
        "plain": "sklearn",
        "remote": "fsspec",
    }
    modules = {f"training/{module}.py": f"import {names}\n" for module, names in allowed.items()}
    modules["preprocessing/standard_indices.py"] = "import spyndex\n"
    modules["training/spectral_backbone/adapters.py"] = "import timm, terratorch\n"
    done = lint_imports(tree(tmp_path, **modules))
    assert done.returncode == 0, done.stdout


def third_party_imports() -> Iterator[str]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    yield str(node.module).split(".")[0]


def declared(text: str) -> set[str]:
    """Return the names of the requirements in a setting of setup.cfg."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {re.split(r"[<>=\[]", line, maxsplit=1)[0].lower() for line in lines}


def test_everything_imported_is_declared(settings: configparser.ConfigParser) -> None:
    distributions = importlib.metadata.packages_distributions()
    foreign = set(third_party_imports()) - set(sys.stdlib_module_names) - set(PACKAGES)
    extras = settings["options.extras_require"]
    known = declared(settings["options"]["install_requires"]).union(
        *(declared(extras[name]) for name in ("adapters", "cuda", "spyndex", "baselines", "remote"))
    )
    # parts of pydantic, of dask[distributed], of s3fs, and of nvidia-ml-py, which only machines with a GPU have
    known |= {"pydantic_core", "distributed", "botocore", "pynvml"}
    missing = {name for name in foreign if not known & {d.lower() for d in distributions.get(name, [name])}}
    assert missing == set()


def test_constraints_pin_everything_declared_and_name_no_build_of_torch(
    settings: configparser.ConfigParser,
) -> None:
    text = (ROOT / "constraints.txt").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))
    names = {name.lower() for name in pins}
    extras = settings["options.extras_require"]
    options = settings["options"]["install_requires"], extras["test"], extras["baselines"], extras["remote"]
    assert set().union(*map(declared, options)) <= names
    assert re.fullmatch(r"\d+\.\d+\.\d+", pins["torch"])
    assert f"deepspeed=={pins['deepspeed']}" in options[0]
