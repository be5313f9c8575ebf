"""A hook of MkDocs: ```math blocks become MathML, which browsers show without any script."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> Any:
    """Add a fence for formulas to the Markdown extensions."""
    superfences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    superfences["custom_fences"] = [{"name": "math", "class": "math", "format": _to_mathml}]
    return config


def _to_mathml(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="math">{convert(source, display="block")}</div>'
