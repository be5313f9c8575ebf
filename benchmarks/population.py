"""How much faster is population evaluation than a loop over candidates?

All ways get the same candidates of one layer and must find the same losses: all of them the same,
and for the first four those of the naive loop. Ways that run the whole model for every candidate
take the same time at every layer and are measured at the middle one; ours are averaged over evenly
spaced layers, as a sweep visits all of them.

Extra memory is the peak beyond what the process held: for ours before the evaluator was made, for
the others when they were ready to run, as the copy of the model that they got is not their need.
Beside it stands what the frozen model's own inference on the same prompts takes, in one batch.
"Useful" is the arithmetic that the losses need (`population_flops.py`) over the time, as a share of
what a matrix product of the model's own feed-forward shape reaches in the same run.

    python benchmarks/population.py --data DIR       # SST-2 as JSON lines; else the demo's data
    python benchmarks/population.py --model roberta-large --populations 20
    python benchmarks/population.py --model gpt2-xl --device cuda --dtype bfloat16
"""

from __future__ import annotations

import platform
import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from common import RESULTS, console, run_cells, save_plot, write_report
from matplotlib.figure import Figure
from population_flops import product_rate, useful_flops
from population_peers import CHUNK, OURS, WAYS, Problem
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from integrations import load_model, load_task
from integrations.adapter import Adapter
from integrations.architectures import describe
from integrations.demo import demo_task
from integrations.metrics import LOSSES
from integrations.patches import Patches
from integrations.peak_memory import PeakMemory
from integrations.population import PopulationEvaluator
from integrations.prompts import Encoder, Prompt
from integrations.smollm2 import fetch
from integrations.spaces import make_spaces
from lora_kernels.bench import wait

# Shapes of models that need a Hub, with random weights: time does not depend on the values.
SHAPES = {
    "roberta-large": {
        "model_type": "roberta", "vocab_size": 50265, "hidden_size": 1024,
        "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "max_position_embeddings": 514,
    },
    "gpt2-large": {"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
    "llama-8b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "max_position_embeddings": 8192,
    },
}  # fmt: skip
CHECKED = 4  # candidates that are held against the naive loop at every layer, untimed
# How far losses may be apart, by what the type of weights and activations keeps.
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 5e-2}


def make_problem(
    name: str, data: Path | None, device: torch.device, dtype: torch.dtype, rank: int = 4
) -> tuple[Problem, list]:
    """The model, prompts and deltas in place, and the search space of each layer."""
    task = demo_task() if data is None else load_task("sst2", data)
    train = task.train[:: len(task.train) // 32][:32]
    if name in SHAPES:
        settings = dict(SHAPES[name])
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        auto = AutoModelForMaskedLM if config.model_type == "roberta" else AutoModelForCausalLM
        torch.manual_seed(0)
        with device:
            model = auto.from_config(config, dtype=dtype).eval()
        arch, label_ids, pad_id = describe(model), (1000, 2000), 1
        # Its own tokenizer is not there: SmolLM2's lengths, token ids within the vocabulary.
        tokenizer = AutoTokenizer.from_pretrained(fetch())
        prompts = [
            Prompt(tuple(i % 40000 for i in prompt.ids), prompt.answer, prompt.label)
            for prompt in Encoder(task, tokenizer, "causal").encode(train)
        ]
    else:
        kept = str(dtype).removeprefix("torch.")
        model, tokenizer = load_model(name, dtype=kept, device=str(device))
        arch = describe(model)
        encoder = Encoder(task, tokenizer, arch.kind)
        prompts, label_ids, pad_id = encoder.encode(train), encoder.label_ids, encoder.pad_id
    batches = PopulationEvaluator(
        arch, prompts, label_ids, pad_id=pad_id, loss=LOSSES["ce"]
    ).batches
    spaces = make_spaces(arch, batches, rank=rank, dim=500, seed=0)
    adapter = Adapter(arch)
    rng = np.random.default_rng(0)
    for layer, space in enumerate(spaces):
        adapter.place(layer, space.factors(0.5 * rng.normal(size=(1, 500)), device, dtype))
    return Problem(arch, prompts, label_ids, pad_id, adapter), spaces


@torch.inference_mode()
def inference_bytes(problem: Problem) -> dict[str, int]:
    """Extra memory of the frozen model's own inference on all prompts in one padded batch.

    Returns:
        With logits of all positions, and with those of the answers only.
    """
    arch, batch, found = problem.arch, problem.padded(), {}
    for name in ("all logits", "logits of answers"):
        memory = PeakMemory(arch.model)
        with Patches() as patches:
            if name == "logits of answers":
                patches.before(arch.head, batch.at_answers)
            batch.run(arch.model)
        found[name] = memory.extra()
    return found


def main(
    model: Annotated[str, typer.Option(help=f"smollm2-135m, {', '.join(SHAPES)}.")] = (
        "smollm2-135m"
    ),
    data: Annotated[Path | None, typer.Option(help="Folder with SST-2.")] = None,
    populations: Annotated[str, typer.Option(help="Separated by commas.")] = "5,20,64",
    layers: Annotated[int, typer.Option(help="How many layers to average over.")] = 5,
    repeats: Annotated[int, typer.Option(help="Medians of so many.")] = 5,
    ways: Annotated[str | None, typer.Option(help="Separated by commas; None for all.")] = None,
    device: Annotated[str, typer.Option(help="Such as cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help=f"{', '.join(TOLERANCE)}.")] = "float32",
    out: Path = RESULTS / "population",
) -> None:
    """Measure, and write a table, JSON and a chart."""
    place, kept = torch.device(device), getattr(torch, dtype)
    problem, spaces = make_problem(model, data, place, kept)
    sizes = [int(size) for size in populations.split(",")]
    names = list(WAYS) if ways is None else ways.split(",")
    count = len(spaces)
    spread = np.linspace(0, count - 1, layers).round().astype(int).tolist()
    # By population and layer: what the naive loop finds for a few, and the first way for all.
    expected: dict[tuple[int, int], np.ndarray] = {}
    found: dict[tuple[int, int], np.ndarray] = {}

    def run(way: str, population: int, layer: int, repeat: int, **_: str) -> dict:
        rng = np.random.default_rng((layer, population))
        z = rng.normal(size=(population, 500))
        candidates = spaces[layer].factors(z, place, kept)
        reference = expected.get((population, layer))
        if reference is None:
            few = {name: factors[:CHECKED] for name, factors in candidates.items()}
            reference = WAYS["naive loop"](problem, layer, few)()
            expected[population, layer] = reference
        at_first = PeakMemory(problem.arch.model)
        evaluate = WAYS[way](problem, layer, candidates)
        memory = at_first if way in OURS else PeakMemory(problem.arch.model)
        wait(place)
        start = time.perf_counter()
        losses = evaluate()
        seconds = time.perf_counter() - start
        extra = memory.extra()
        np.testing.assert_allclose(losses[:CHECKED], reference, atol=TOLERANCE[dtype])
        everybody = found.setdefault((population, layer), losses)
        np.testing.assert_allclose(losses, everybody, atol=TOLERANCE[dtype])
        row = {"seconds": seconds, "extra_bytes": extra}
        if way in OURS:
            labels = len(problem.label_ids)
            flops = useful_flops(problem.arch, problem.prompts, labels, layer, candidates)
            # A GPU gets the whole population at once; a CPU's caches would rather not.
            copies = population if place.type == "cuda" else 1
            rate = product_rate(problem.arch, problem.prompts, copies)
            row |= {"useful_flops": flops, "product_rate": rate}
        return row

    cells = [
        {
            **{"model": model, "dtype": dtype, "data": "demo" if data is None else str(data)},
            **{"way": way, "population": size, "layer": layer, "repeat": repeat},
        }
        for repeat in range(repeats)
        for size in sizes
        for way in names
        for layer in (spread if way in OURS else [spread[len(spread) // 2]])
    ]
    name, where = model, platform.processor() or platform.machine()
    if place.type == "cuda":
        where = torch.cuda.get_device_name(place)
        name = f"{model}-{dtype}-{where.replace(' ', '-').lower()}"
    rows = run_cells(out / f"{name}.jsonl", cells, run)
    results = summarize(rows, sizes, names)
    title = f"{model}, {dtype}, {where}"
    inference = inference_bytes(problem)
    show(results, sizes, title, inference)
    task = "the demo's" if data is None else "SST-2"
    settings = {"layers": spread, "repeats": repeats, "chunk": CHUNK}
    settings |= {"prompts": f"{task}, {len(problem.prompts)}"}
    settings |= {"device": where, "dtype": dtype, "inference_bytes": inference}
    write_report(out / f"{name}.json", ["torch", "transformers", "peft"], settings, results)
    save_plot(chart(results, sizes, title), out / f"{name}.png")


def summarize(rows: list[dict], sizes: list[int], names: list[str]) -> list[dict]:
    """Median seconds over repeats, averaged over layers, and the ratio to the naive loop."""
    results = []
    for size in sizes:
        for way in names:
            mine = [
                row for row in rows
                if row["cell"]["way"] == way and row["cell"]["population"] == size
            ]  # fmt: skip
            errors = {row["error"] for row in mine if "error" in row}
            by_layer: dict[int, list[float]] = {}
            for row in mine:
                if "error" not in row:
                    by_layer.setdefault(row["cell"]["layer"], []).append(row["seconds"])
            result = {"way": way, "population": size}
            if errors:
                result["error"] = errors.pop()
            else:
                result["seconds"] = statistics.fmean(map(statistics.median, by_layer.values()))
                result["extra_bytes"] = max(row["extra_bytes"] for row in mine)
                if way in OURS:
                    done = sum(row["useful_flops"] for row in mine)
                    rate = statistics.median(row["product_rate"] for row in mine)
                    result["useful"] = done / sum(row["seconds"] for row in mine) / rate
            results.append(result)
    naive = {r["population"]: r.get("seconds") for r in results if r["way"] == "naive loop"}
    for result in results:
        if result.get("seconds") and naive.get(result["population"]):
            result["times_naive"] = naive[result["population"]] / result["seconds"]
    return results


def show(results: list[dict], sizes: list[int], title: str, inference: dict[str, int]) -> None:
    """Print the table."""
    own = ", ".join(f"{number / 1e6:.0f} with {name}" for name, number in inference.items())
    table = Table(
        "",
        title=f"{title}: seconds a generation (times faster than naive; extra MB; useful)",
        caption=f"extra MB of the model's own inference: {own}",
    )
    for size in sizes:
        table.add_column(f"population {size}", justify="right")
    for way in dict.fromkeys(result["way"] for result in results):
        cells = []
        for size in sizes:
            (r,) = (r for r in results if r["way"] == way and r["population"] == size)
            if "error" in r:
                cells.append(r["error"][:40])
            else:
                ratio = f"{r['times_naive']:.2f}" if "times_naive" in r else "-"
                useful = f"; {r['useful']:.0%}" if "useful" in r else ""
                cells.append(f"{r['seconds']:.3f} ({ratio}; {r['extra_bytes'] / 1e6:.0f}{useful})")
        table.add_row(way, *cells)
    console.print(table)


def chart(results: list[dict], sizes: list[int], title: str) -> Figure:
    """Bars: how many times faster than the naive loop."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    ways = list(dict.fromkeys(r["way"] for r in results))[::-1]
    height = 0.8 / len(sizes)
    for i, size in enumerate(sizes):
        found = {r["way"]: r.get("times_naive", 0) for r in results if r["population"] == size}
        places = np.arange(len(ways)) + (len(sizes) / 2 - i - 0.5) * height
        bars = axes.barh(places, [found[way] for way in ways], height, label=f"population {size}")
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(range(len(ways)), ways)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xlabel("times faster than the naive loop")
    axes.set_title(f"{title}: one generation of one layer, mean over layers", fontsize=10)
    axes.legend()
    return figure


if __name__ == "__main__":
    typer.run(main)
