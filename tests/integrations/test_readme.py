"""The README's Python examples run as they stand."""

import re
import shutil
from pathlib import Path

import pytest
from tiny import build_model

import integrations
from integrations.demo import demo_task

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_are_three_examples():
    assert len(BLOCKS) == 3


def test_tune_with_an_optimizer_of_ones_own(monkeypatch, tmp_path, word_tokenizer, capsys):
    """On a random model in place of the downloaded one."""
    loaded = build_model("llama", max_position_embeddings=512), word_tokenizer("causal")
    monkeypatch.setattr(integrations, "load_model", lambda name: loaded)
    shutil.copytree(Path(integrations.__file__).parent / "demo_data", tmp_path / "my-data")
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[0], {})
    assert f"examples={len(demo_task().test)}" in capsys.readouterr().out
    assert {"adapter", "curve.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_black_box_examples_find_the_minimum(block):
    names = {}
    exec(block, names)
    result = names["best"] if "best" in names else names["opt"].result
    assert result.fun < 1e-8
