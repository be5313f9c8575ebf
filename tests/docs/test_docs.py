"""Every block of the documentation and the README works as it stands."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer
from sybil import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from integrations.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shell_lines(page):
    """Lines of a page's shell blocks, and indented lines, which are code too."""
    text = page.read_text().replace("\\\n", "")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "".join(blocks).splitlines() + re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)


PACKAGES = ("dfo_core", "lora_kernels", "integrations")
COMMANDS = [
    (f"{page.relative_to(ROOT)}: {line}", found[1])
    for page in PAGES
    for line in shell_lines(page)
    if (found := re.match(r"(?:\w+=\S+ )*((?:dfo-lora|make) .+)", line))
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_python_blocks_run_and_print_what_follows(page, stand_ins, workplace, capsys):
    """A page is one session; a text block is what the Python block before it prints."""
    python = PythonEvaluator()

    def run(example):
        capsys.readouterr()
        python(example)

    def compare(example):
        assert capsys.readouterr().out == example.parsed

    document = Document.parse(
        str(page), CodeBlockParser("python", run), CodeBlockParser("text", compare)
    )
    document.namespace["__name__"] = "__main__"  # what is guarded by it runs too
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize(
    "command", [command for _, command in COMMANDS], ids=[name for name, _ in COMMANDS]
)
def test_commands_and_their_options_exist(command):
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in words if "=" not in word} <= targets
        return
    group = typer.main.get_command(app)
    with group.make_context(program, words) as context:
        name, subcommand, rest = group.resolve_command(context, words)
        subcommand.make_context(name, rest, parent=context)


@pytest.mark.parametrize("package", PACKAGES)
def test_reference_has_every_public_name(package):
    page = (ROOT / "docs" / "reference" / f"{package}.md").read_text()
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", page, re.MULTILINE)}
    missing = set(importlib.import_module(package).__all__) - shown
    assert not missing, f"add a line ::: {package}.NAME to docs/reference/{package}.md for each"


def test_messages_are_those_of_the_code():
    """The page of errors quotes messages, with … for what depends on the input."""
    strings = "\n".join(
        "".join(
            part.value if isinstance(part, ast.Constant) else "…"
            for part in (node.values if isinstance(node, ast.JoinedStr) else [node])
            if not isinstance(part, ast.Constant) or isinstance(part.value, str)
        )
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr | ast.Constant)
    )
    page = (ROOT / "docs" / "faq.md").read_text()
    quoted = re.findall(r"```console\n(.*?)\n```", page, re.DOTALL)
    assert quoted
    for message in quoted:
        for piece in message.split("…"):
            assert piece in strings, message
