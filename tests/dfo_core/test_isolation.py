"""dfo_core works where nothing but Python, numpy and scipy is installed."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dfo_core

ROOT = Path(dfo_core.__file__).parents[1]
PACKAGES = ("numpy", "scipy")

USE = """
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import tempfile
import dfo_core
import dfo_core.fuzzing, dfo_core.testing, dfo_core.ray_executor

names = ["cma-es", "sep-cma-es", "lm-ma-es", "ipop-cma-es", "bipop-cma-es", "lotfwa", "random"]
for name in [*names, "quasi-random"]:
    with tempfile.TemporaryDirectory() as folder:
        result = dfo_core.minimize(
            lambda x: float(x @ x), x0=[0.5, 0.5], bounds=(-1, 1), method=name, budget=200, seed=0,
            executor=lambda: ThreadPoolExecutor(2), checkpoint=Path(folder, "run.npz"),
        )
    assert result.nfev <= 200 and result.fun < 0.2, (name, result)
dfo_core.minimize(lambda x: x @ x, method=dfo_core.Averaged(dfo_core.CMAES([0.5]), 2), budget=20)

libraries = ["pycma", "cmaes", "nevergrad:NGOpt", "optuna:TPE", "evosax:SNES", "evotorch:cem"]
for name in libraries:
    try:
        dfo_core.as_optimizer(name, 2, bounds=(-1, 1) if "optuna" in name else None, budget=100)
    except ImportError as error:
        assert "pip install" in str(error), error
    else:
        raise AssertionError(name)
print("fine")
"""


@pytest.fixture
def run(tmp_path):
    """Run code in an environment of its own: numpy, scipy and dfo_core, and no site-packages."""
    for package in PACKAGES:
        site = Path(importlib.import_module(package).__file__).parents[1]
        for name in (package, f"{package}.libs"):  # wheels keep their shared libraries beside them
            if (site / name).exists():
                (tmp_path / name).symlink_to(site / name)
    (tmp_path / "dfo_core").symlink_to(ROOT / "dfo_core")

    def run(code):
        command = [sys.executable, "-S", "-c", code]  # -S: without site-packages
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run


def test_in_an_environment_of_numpy_and_scipy(run):
    done = run(USE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fine"


@pytest.mark.parametrize("package", ["pytest", "cma", "lora_kernels"])
def test_the_environment_has_nothing_else(run, package):
    assert f"No module named '{package}'" in run(f"import {package}").stderr


def test_no_file_of_it_names_another_package():
    """Not even inside a function: `require` imports libraries, and says what to install."""
    allowed = sys.stdlib_module_names | {*PACKAGES, "dfo_core"}
    for path in ROOT.joinpath("dfo_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            others = {name.partition(".")[0] for name in names} - allowed
            assert not others, f"{path.name} imports {others}"
