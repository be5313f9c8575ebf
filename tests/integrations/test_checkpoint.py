"""Checkpoints: an interrupted run ends as one left alone, and no damage goes unnoticed."""

import json
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tiny import build_model, label_logits

import dfo_core
from dfo_core.serialization import state_digest
from integrations import NAIVE, Speedups, UserError, checkpoint, tune
from integrations.checkpoint import FORMAT, Checkpoint, CheckpointWarning
from integrations.fingerprint import config_digest, prompts_digest, weights_digest
from integrations.metrics import cross_entropy
from integrations.optimizers import make_optimizers
from integrations.population import PopulationEvaluator
from integrations.prompts import Prompt

SHORT = {"budget": 24, "dim": 16, "dev_every": 8, "layers": "all", "patience": None}
FIXED_BLOCKS = Speedups(blocks=2)
POPSIZES = {"lotfwa": None, "cma-es": 4, "lm-ma-es": 4, "random": 4}
IDS = torch.arange(10, 40).view(3, 10)


@pytest.fixture(scope="module")
def start(word_tokenizer, toy_task):
    """start(**arguments): a short run on a tiny model."""

    def start(**arguments):
        settings = {"task": toy_task, "speedups": FIXED_BLOCKS, **SHORT} | arguments
        if "optimizer" in settings:
            settings.setdefault("popsize", POPSIZES.get(settings["optimizer"]))
        model = settings.pop("model", None) or build_model("llama", num_hidden_layers=2)
        settings.setdefault("tokenizer", word_tokenizer("causal"))
        return tune(model, settings.pop("task"), **settings)

    return start


@pytest.fixture(autouse=True)
def every_generation(monkeypatch):
    """Save after each, however long it takes."""
    monkeypatch.setattr(checkpoint, "SHARE", 1.0)


def outcome_of(result):
    """All that two runs of the same arguments share: history but for its times, and deltas."""
    course = result.history.to_dict()
    for score in course["scores"]:
        del score["seconds"]
    deltas = [
        (layer, name, side.dtype, side.numpy().tobytes())
        for layer, factors in enumerate(result.adapter.factors)
        for name, f in (factors or {}).items()
        for side in (f.A, f.B)
    ]
    assert deltas
    return course, deltas, result.stopped, result.settings


@pytest.fixture(scope="module")
def alone(start):
    """alone(**arguments): what a run gives that nothing interrupts and nothing saves."""
    known = {}

    def alone(**arguments):
        key = repr(sorted(arguments.items()))
        if key not in known:
            known[key] = outcome_of(start(**arguments))
        return known[key]

    return alone


def ends(after, error=None):
    """A callback that ends a run after so many generations, or raises."""

    def callback(progress):
        if progress.visit.number == after - 1 and error is not None:
            raise error
        return progress.visit.number == after - 1

    return callback


# -- the same end ----------------------------------------------------------------------------------


class Killed(BaseException):
    pass


class Killer:
    """Kills at a chosen file operation; after that nothing works, not even tidying up."""

    def __init__(self, monkeypatch, at):
        self.at, self.count = at, 0
        for name in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, operation):
        def counted(*arguments, **options):
            self.count += 1
            if self.count > self.at:
                raise Killed
            return operation(*arguments, **options)

        return counted


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [*((name, "generation-major") for name in POPSIZES), ("lotfwa", "joint")],
)
def test_a_run_killed_at_any_file_operation_ends_as_one_left_alone(
    start, alone, tmp_path, optimizer, schedule
):
    run = {"optimizer": optimizer, "schedule": schedule, "budget": 14}
    with pytest.MonkeyPatch.context() as patch:
        whole = Killer(patch, at=10**6)
        assert outcome_of(start(**run, checkpoint=tmp_path / "whole")) == alone(**run)
    # Where it is killed does not depend on the optimizer: all moments for one, some for the others.
    every = 1 if (optimizer, schedule) == ("lotfwa", "generation-major") else 5
    for at in range(0, whole.count, every):
        folder = tmp_path / str(at)
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, at)
            with pytest.raises(Killed):
                start(**run, checkpoint=folder)
        with warnings.catch_warnings():
            warnings.simplefilter("error", CheckpointWarning)
            result = start(**run, checkpoint=folder)
        assert outcome_of(result) == alone(**run)
        assert all(file.suffix == ".safetensors" for file in folder.iterdir())


@pytest.mark.parametrize("optimizer", POPSIZES)
@pytest.mark.parametrize("after", [1, 3])
def test_a_run_ended_by_its_callback_goes_on_as_if_it_had_not_been(
    start, alone, tmp_path, optimizer, after
):
    ended = start(optimizer=optimizer, checkpoint=tmp_path, callback=ends(after))
    assert ended.stopped == "callback"
    assert len(ended.history.visits) == after
    assert ended.history.scores[-1].evaluations == ended.history.visits[-1].evaluations
    assert outcome_of(start(optimizer=optimizer, checkpoint=tmp_path)) == alone(optimizer=optimizer)


@pytest.mark.parametrize("schedule", ["block", "cost-aware", "joint"])
@pytest.mark.parametrize("optimizer", ["lotfwa", "lm-ma-es"])
def test_every_schedule_goes_on_as_if_it_had_not_been_interrupted(
    start, alone, tmp_path, optimizer, schedule
):
    run = {"optimizer": optimizer, "schedule": schedule, "budget": 60}
    for after in (1, 4, 7):
        start(**run, checkpoint=tmp_path, callback=ends(after))
    if schedule == "joint":
        assert {file.name.rpartition("-")[0] for file in tmp_path.iterdir()} == {
            "layer-all",
            "state",
        }
    assert outcome_of(start(**run, checkpoint=tmp_path)) == alone(**run)
    with pytest.raises(UserError, match=rf"schedule \(there {schedule}, here generation-major\)"):
        start(**run | {"schedule": "generation-major"}, checkpoint=tmp_path)


@pytest.mark.parametrize("speedups", [NAIVE, Speedups(blocks=2, prefix_cache=False)])
def test_other_ways_to_evaluate_resume_as_exactly(start, tmp_path, speedups):
    expected = outcome_of(start(speedups=speedups))
    start(speedups=speedups, checkpoint=tmp_path, callback=ends(3))
    assert outcome_of(start(speedups=speedups, checkpoint=tmp_path)) == expected


def test_a_measured_block_size_is_kept(start, tmp_path, monkeypatch):
    def measure(self, candidates, adapter, workers=1):
        self.block_size = self.block_size or next(sizes)

    sizes = iter([2, 1])
    monkeypatch.setattr(PopulationEvaluator, "choose_block_size", measure)
    start(speedups=Speedups(), checkpoint=tmp_path, callback=ends(2))
    assert start(speedups=Speedups(), checkpoint=tmp_path).settings["block_size"] == 2
    assert next(sizes) == 1


def test_how_many_candidates_a_block_was_chosen_for_is_kept(start, tmp_path, monkeypatch):
    """Else a first small batch would choose another, and the last digits would differ."""
    arguments = {"speedups": Speedups(), "popsize": 25, "budget": 60, "checkpoint": tmp_path}
    start(**arguments, callback=ends(1))
    asked, own = [], PopulationEvaluator.choose_block_size

    def choose(self, candidates, adapter, workers=1):
        asked.append((len(candidates), self.chosen_for, self.block_size))
        own(self, candidates, adapter, workers)

    monkeypatch.setattr(PopulationEvaluator, "choose_block_size", choose)
    start(**arguments)
    (first, chosen_for, block_size), *_ = asked
    assert (chosen_for, block_size) == (20, 5)  # five fireworks' sparks; 512 tokens hold five
    assert first < chosen_for


def test_patience_counts_across_an_interruption(start, tmp_path):
    weak = {"init": "normal", "init_std": 1e-30, "budget": 400, "patience": 30}
    visits = start(**weak).history.visits
    start(**weak, checkpoint=tmp_path, callback=ends(len(visits) // 2))
    resumed = start(**weak, checkpoint=tmp_path)
    assert (resumed.stopped, resumed.history.visits) == ("patience", visits)
    again = start(**weak, checkpoint=tmp_path, callback=lambda _: pytest.fail("it went on"))
    assert (again.stopped, again.history) == ("patience", resumed.history)


def test_ctrl_c_in_the_middle_of_a_generation(start, alone, tmp_path, monkeypatch):
    """The model is as it was, and the checkpoint is that of the generation before."""
    model = build_model("llama", num_hidden_layers=2)
    before = model(input_ids=IDS).logits
    compute, calls = PopulationEvaluator.losses, []

    def interrupted(*arguments):
        losses = compute(*arguments)
        calls.append(losses)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(PopulationEvaluator, "losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start(model=model, checkpoint=tmp_path)
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())
    assert outcome_of(start(model=model, checkpoint=tmp_path)) == alone()


def test_a_finished_run_is_returned_without_an_evaluation(start, alone, tmp_path, monkeypatch):
    first = start(checkpoint=tmp_path)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    monkeypatch.setattr(PopulationEvaluator, "losses", lambda *_: pytest.fail("evaluated"))
    again = start(checkpoint=tmp_path)
    assert outcome_of(again) == alone()
    assert again.history == first.history
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files


def test_seconds_count_the_time_that_was_worked(start, tmp_path):
    first = start(checkpoint=tmp_path, callback=ends(2))
    resumed = start(checkpoint=tmp_path)
    seconds = [score.seconds for score in resumed.history.scores]
    assert seconds == sorted(seconds)
    assert seconds[-1] >= first.history.scores[0].seconds


def test_a_model_whose_candidates_sometimes_give_nan(start, tmp_path, toy_task):
    """Survived, counted, and resumed as exactly."""
    model = build_model("llama", num_hidden_layers=2)
    encoder = start(model=model, budget=1).encoder
    frozen = label_logits(
        model, encoder.encode([*toy_task.train, *toy_task.dev]), encoder.label_ids
    )
    limit = frozen.max() + 0.05

    def overflow(module, inputs, logits):
        return torch.where(logits > limit, torch.nan, logits)

    # The head gives logits of the label words only while a run evaluates.
    model.lm_head.register_forward_hook(overflow)
    expected = start(model=model, budget=60)
    history = expected.history
    assert 0 < history.invalid < 60
    assert history.visits[-1].evaluations == 60
    assert np.isfinite([visit.loss for visit in history.visits]).all()
    assert history.visits[-1].loss < history.scores[0].train_loss
    start(model=model, budget=60, checkpoint=tmp_path, callback=ends(4))
    resumed = start(model=model, budget=60, checkpoint=tmp_path)
    assert repr(outcome_of(resumed)) == repr(outcome_of(expected))  # NaN equals nothing
    assert np.isfinite([score.loss for score in history.scores if score.best]).all()
    assert resumed.history.invalid == history.invalid


@pytest.fixture
def slow_disk(monkeypatch):
    """Names of the files saved; each takes a second, a generation 5 s with ``slow_disk.work``."""
    now, save = [0.0], checkpoint.save_state

    class SlowDisk(list):
        def work(self, progress):
            now[0] += 5.0

    names = SlowDisk()

    def slow(path, state):
        now[0] += 1.0
        names.append(path.name)
        save(path, state)

    monkeypatch.setattr(checkpoint, "SHARE", 0.1)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "save_state", slow)
    return names


def test_saving_takes_a_small_share_of_the_time(start, tmp_path, slow_disk):
    visits = start(budget=60, checkpoint=tmp_path, callback=slow_disk.work).history.visits
    states = [name for name in slow_disk if name.startswith("state")]
    # The first takes 2 s, so that 18 s pass until the next: four generations. With both layers'
    # optimizers a save takes 3 s, and 27 s pass.
    expected = [*range(1, 6, 4), *range(11, len(visits), 6), len(visits)]
    assert states == [f"state-{number:06d}.safetensors" for number in expected]


def test_generations_that_were_not_saved_are_run_again(start, alone, tmp_path, slow_disk):
    def work(progress):
        slow_disk.work(progress)
        if progress.visit.number == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(budget=60, checkpoint=tmp_path, callback=work)
    assert slow_disk[-1] == "state-000005.safetensors"
    assert outcome_of(start(budget=60, checkpoint=tmp_path)) == alone(budget=60)


# -- another run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(start, tmp_path_factory):
    """A folder with the checkpoint of a run of seven generations, and that run's outcome."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "SHARE", 1.0)
        start(**LONGER, checkpoint=folder, callback=ends(7))
    return folder


LONGER = {"budget": 60}


@pytest.fixture
def folder(interrupted, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(interrupted, tmp_path / "run")


DIFFERENT = {
    "seed": {"seed": 1},
    "optimizer": {"optimizer": "cma-es"},
    "optimizer's starting state": {"optimizer": "lotfwa", "popsize": 6},
    "rank": {"rank": 2},
    "dim": {"dim": 20},
    "targets": {"targets": ("v", "q")},
    "layers": {"layers": [1]},
    "popsize": {"popsize": 6},
    "schedule": {"schedule": "block"},
    "loss": {"loss": "hinge"},
    "init": {"init": "normal"},
    "init_std": {"init_std": 0.1},
    "dev_every": {"dev_every": 9},
    "patience": {"patience": 100},
    "max_length": {"max_length": 20},
    "speedups": {"speedups": Speedups(blocks=1)},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_run_with_other_arguments_is_refused_and_told_what_differs(start, folder, name):
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UserError, match="is of another run; what differs: ") as error:
        start(**LONGER | DIFFERENT[name], checkpoint=folder)
    message = str(error.value)
    assert f"{name} (there " in message
    assert str(folder) in message
    assert "resume=False" in message
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_other_examples_are_refused(start, folder, toy_task):
    for split, name in (("train", "training"), ("dev", "development")):
        task = replace(toy_task, **{split: toy_task.test})
        with pytest.raises(
            UserError, match=rf"differs: {name} prompts \(there [^,]*, here [^,]*\)\."
        ):
            start(**LONGER, task=task, checkpoint=folder)
    swapped = replace(toy_task, label_words=("great", "bad"))
    with pytest.raises(UserError, match=r"label tokens \(there"):
        start(**LONGER, task=swapped, checkpoint=folder)


def test_another_model_is_refused(start, folder):
    model = build_model("llama", num_hidden_layers=2)
    model.lm_head.weight.data[5, 5] += 1e-6
    with pytest.raises(UserError, match=r"differs: model weights \(there [^,]*, here [^,]*\)\."):
        start(**LONGER, model=model, checkpoint=folder)
    model = build_model("llama", num_hidden_layers=2, rms_norm_eps=1e-5)
    with pytest.raises(UserError, match=r"differs: model configuration \(there"):
        start(**LONGER, model=model, checkpoint=folder)


def test_the_same_model_from_elsewhere_is_the_same(start, alone, tmp_path):
    start(checkpoint=tmp_path / "run", callback=ends(3))
    build_model("llama", num_hidden_layers=2).save_pretrained(tmp_path / "model")
    model = type(build_model("llama")).from_pretrained(tmp_path / "model")
    course, deltas, *_ = outcome_of(start(model=model, checkpoint=tmp_path / "run"))
    assert (course, deltas) == alone()[:2]


def test_a_quantized_weight_is_told_by_the_tensors_it_is_made_of():
    two = pytest.importorskip("torch.testing._internal.two_tensor")
    model = torch.nn.Linear(2, 2)
    digests = set()
    for b in (torch.zeros(2, 2), torch.ones(2, 2)):
        model.weight = torch.nn.Parameter(two.TwoTensor(torch.zeros(2, 2), b))
        digests |= {weights_digest(model), weights_digest(model)}
    assert len(digests) == 2


def test_a_budget_may_be_raised_but_not_lowered(start, folder):
    with pytest.raises(
        UserError, match=r"budget \(there 60, here 50; it may be raised, not lowered"
    ):
        start(budget=50, checkpoint=folder)
    more = {"budget": 80}
    assert outcome_of(start(**more, checkpoint=folder)) == outcome_of(start(**more))


def test_a_spent_budget_may_be_raised_too(start, tmp_path):
    first = start(checkpoint=tmp_path)
    more = start(budget=40, checkpoint=tmp_path)
    visits = first.history.visits
    assert more.history.visits[: len(visits)] == visits
    assert more.history.visits[-1].evaluations == 40
    assert more.stopped == "budget"


def test_a_run_whose_time_was_up_goes_on_with_more(start, alone, tmp_path):
    first = start(checkpoint=tmp_path, seconds=1e-9)
    assert first.stopped == "seconds"
    again = start(checkpoint=tmp_path, seconds=1e-9, callback=lambda _: pytest.fail("it went on"))
    assert again.stopped == "seconds"
    assert again.history.visits == first.history.visits
    assert again.history.scores[-1].evaluations == first.history.scores[-1].evaluations > 0
    assert outcome_of(start(checkpoint=tmp_path)) == alone()


def test_starting_anew_removes_the_earlier_run_and_nothing_else(start, alone, folder):
    (folder / "notes.txt").write_text("mine")
    (folder / ".state-000009.safetensors.1.2.tmp").write_text("left by a kill")
    assert outcome_of(start(checkpoint=folder, resume=False)) == alone()
    assert (folder / "notes.txt").read_text() == "mine"
    assert not list(folder.glob("*7.safetensors")) + list(folder.glob(".*"))
    assert outcome_of(start(checkpoint=folder)) == alone()


@pytest.mark.parametrize(
    "optimizer", ["pycma", "nevergrad:OnePlusOne", lambda dim, seed: Gaussian(dim, seed)]
)
def test_an_optimizer_without_state_is_refused_before_any_work(start, tmp_path, optimizer):
    model = build_model("llama", num_hidden_layers=2)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(UserError, match=r"cannot be checkpointed.* cma-es, .*lotfwa.* leave out"):
        start(model=model, optimizer=optimizer, popsize=None, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Gaussian:
    def __init__(self, dim, seed):
        self.dim, self.rng = dim, np.random.default_rng(seed)

    def ask(self):
        return self.rng.normal(size=(3, self.dim))

    def tell(self, points, losses):
        pass


def test_a_folder_that_takes_no_files_is_told_before_any_work(start, tmp_path, monkeypatch):
    def refuse(self, *arguments, **settings):
        raise PermissionError(13, "Permission denied", str(self))

    start(checkpoint=tmp_path, callback=ends(2))
    monkeypatch.setattr(PopulationEvaluator, "logits", lambda *_: pytest.fail("it was begun"))
    monkeypatch.setattr(Path, "touch", refuse)
    for resume in (True, False):
        with pytest.raises(UserError, match=r"a folder that can be written: .*Permission denied"):
            start(checkpoint=tmp_path, resume=resume)


def test_a_finished_run_needs_no_room(start, tmp_path, monkeypatch):
    result = start(checkpoint=tmp_path)
    monkeypatch.setattr(Path, "touch", lambda _: pytest.fail("it was written to"))
    assert outcome_of(start(checkpoint=tmp_path)) == outcome_of(result)


def test_a_full_disk_names_the_file_and_leaves_the_state_before(
    start, alone, tmp_path, monkeypatch
):
    saves = []

    def full(path, state):
        saves.append(path)
        if len(saves) == 5:
            raise OSError(28, "No space left on device")
        return dfo_core.save_state(path, state)

    monkeypatch.setattr(checkpoint, "save_state", full)
    with pytest.raises(
        UserError, match=r"safetensors cannot be written \(.*No space left .*same c"
    ):
        start(checkpoint=tmp_path)
    assert outcome_of(start(checkpoint=tmp_path)) == alone()


def test_a_checkpoint_must_be_a_folder(start, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"checkpoint must be a folder; .*file is a file"):
        start(checkpoint=tmp_path / "file")
    with pytest.raises(UserError, match="checkpoint must be the name of a folder; got True"):
        start(checkpoint=True)
    with pytest.raises(UserError, match="checkpoint must be a folder that can be written"):
        start(checkpoint=tmp_path / "file" / "below")


def test_other_hardware_is_told_and_the_run_goes_on(start, folder, monkeypatch):
    loss = PopulationEvaluator.loss_in_place
    monkeypatch.setattr(PopulationEvaluator, "loss_in_place", lambda *a: loss(*a) + 1e-9)
    with pytest.warns(CheckpointWarning, match="other hardware, versions or threads"):
        assert start(**LONGER, checkpoint=folder).stopped == "budget"


def test_another_loss_of_the_same_name_is_told(start, tmp_path):
    def own(factor):
        def cost(logits, labels):
            return factor * cross_entropy(logits, labels)

        return cost

    start(loss=own(1), checkpoint=tmp_path, callback=ends(2))
    with pytest.warns(CheckpointWarning, match="another loss or score of the same name"):
        start(loss=own(2), checkpoint=tmp_path)


# -- damage ----------------------------------------------------------------------------------------


def taken_for(folder, arguments):
    """What is found in a folder, as digests of the state and the optimizers, and the notices."""
    layers = make_optimizers("lotfwa", range(2), SHORT["dim"], 0, LONGER["budget"], None)
    dims = dict.fromkeys(range(2), SHORT["dim"])
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        state = Checkpoint(folder, arguments, LONGER["budget"], layers, dims).load()
    found = [state.to_dict(), *(optimizer.state_dict() for optimizer in layers.values())]
    return [state_digest(part) for part in found], [str(notice.message) for notice in notices]


def needs(state):
    """Names of the files that a state needs."""
    layers = dfo_core.load_state(state)["layers"].items()
    return {state.name, *(f"layer-{int(i):02d}-{n:06d}.safetensors" for i, n in layers)}


@pytest.fixture(scope="module")
def intact(interrupted, tmp_path_factory):
    """Arguments, what the newest state and the one before are taken for, and what they need."""
    *_, before, newest = sorted(interrupted.glob("state-*"))
    arguments = dfo_core.load_state(newest)["arguments"]
    older = shutil.copytree(interrupted, tmp_path_factory.mktemp("older") / "run")
    (older / newest.name).unlink()
    found = [taken_for(folder, arguments) for folder in (interrupted, older)]
    assert found[0][0] != found[1][0]
    assert [notices for _, notices in found] == [[], []]
    return arguments, [digests for digests, _ in found], [needs(newest), needs(before)]


def truncated(rng, file, others):
    content = file.read_bytes()
    file.write_bytes(content[: rng.integers(len(content))])


def flipped(rng, file, others):
    content = bytearray(file.read_bytes())
    for at in rng.choice(len(content), size=rng.integers(1, 4), replace=False):
        content[at] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def flipped_in_the_header(rng, file, others):
    content = bytearray(file.read_bytes())
    content[rng.integers(8 + int.from_bytes(content[:8], "little"))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def lengthened(rng, file, others):
    file.write_bytes(file.read_bytes() + rng.bytes(rng.integers(1, 100)))


def missing(rng, file, others):
    file.unlink()


def a_folder(rng, file, others):
    file.unlink()
    file.mkdir()


def swapped(rng, file, others):
    other = others[rng.integers(len(others))]
    content = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return other


FOREIGN = [b"", b"{}", b"[1, 2]", json.dumps({"format": 1, "run": "a"}).encode(), b"\x80\x04K\x01."]


def foreign(rng, file, others):
    kind = rng.integers(len(FOREIGN) + 2)
    if kind < len(FOREIGN):
        file.write_bytes(FOREIGN[kind])
    elif kind == len(FOREIGN):
        save_file({"weight": np.zeros((2, 2))}, file)
    else:
        dfo_core.save_state(file, {"arguments": {}, "objective": {}, "optimizer": {}})


def of_another_version(rng, file, others):
    content = dfo_core.load_state(file)
    content["format"] = [FORMAT + 1, 0, None, "new"][rng.integers(4)]
    dfo_core.save_state(file, content)


def of_another_run(rng, file, others):
    """A state is as good as its layers, so that is about those."""
    content = dfo_core.load_state(file)
    dfo_core.save_state(file, content | {"run": "another"})


def lacking(rng, file, others):
    """An entry is missing somewhere, though the checksum is right."""
    content = dfo_core.load_state(file)
    inner = content if rng.integers(2) else content["state"]
    del inner[rng.choice(sorted(inner))]
    dfo_core.save_state(file, content)


def nonsense(rng, file, others):
    """An entry is something else, though the checksum is right."""
    content = dfo_core.load_state(file)
    entries = sorted(content["state"])
    content["state"][rng.choice(entries)] = ["text", -1.5, {"7": [0.0]}][rng.integers(3)]
    dfo_core.save_state(file, content)


DAMAGES = [truncated, flipped, flipped_in_the_header, lengthened, missing, a_folder, swapped]
DAMAGES += [foreign, of_another_version, of_another_run, lacking, nonsense]


def outcome_in(folder, arguments):
    """The notices or the error's message, and what was found or None."""
    try:
        digests, notices = taken_for(folder, arguments)
    except UserError as error:
        return str(error), None
    return "".join(notices), digests


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_never_used(interrupted, intact, tmp_path, damage):
    """Twenty seeded cases of each kind: the state before is used with a notice, or none is."""
    arguments, (newest, before), (newest_needs, before_needs) = intact
    outcomes = set()
    for seed in range(20):
        rng = np.random.default_rng((DAMAGES.index(damage), seed))
        folder = shutil.copytree(interrupted, tmp_path / str(seed))
        files = sorted(folder.iterdir())
        file = files.pop(rng.integers(len(files)))
        other = damage(rng, file, files)
        touched = {file.name} | ({other.name} if other else set())
        message, digests = outcome_in(folder, arguments)
        assert "\n" not in message
        if not touched & newest_needs or (damage is missing and file.name.startswith("state")):
            # A state that is gone can't be told from one that was never written.
            assert digests == (before if file.name in newest_needs else newest)
            assert message == ""
            continue
        assert any(str(folder / name) in message for name in touched)
        if digests is None:
            assert touched & before_needs
        else:
            assert digests == before
            assert "Continuing from the state before" in message
        outcomes.add("refused" if digests is None else "before")
    assert "before" in outcomes


def test_with_its_newest_state_damaged_a_run_still_ends_as_one_left_alone(start, folder):
    newest = max(folder.glob("state-*"))
    newest.write_bytes(newest.read_bytes()[:-10])
    with pytest.warns(CheckpointWarning, match=f"{newest.name} cannot be read.*Continuing from"):
        result = start(**LONGER, checkpoint=folder)
    assert outcome_of(result) == outcome_of(start(**LONGER))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcome_of(start(**LONGER, checkpoint=folder)) == outcome_of(result)


def test_without_any_usable_state_a_run_is_refused(start, folder):
    for state in folder.glob("state-*"):
        state.write_text("{}")
    with pytest.raises(
        UserError, match=r"no checkpoint can be used: .*state-.*; .*state-.*resume=F"
    ):
        start(**LONGER, checkpoint=folder)
    assert start(checkpoint=folder, resume=False).stopped == "budget"


def test_nothing_is_pickled(folder):
    """A safetensors file is a length, a JSON header and plain numbers."""
    for file in folder.iterdir():
        content = file.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert {entry["dtype"] for entry in header.values()} <= {"F64", "I64", "U8", "BOOL"}


def test_how_a_model_writes_and_what_its_decoder_reads_is_part_of_a_run():
    model = build_model("t5")
    before = config_digest(model)
    assert config_digest(build_model("t5")) == before
    model.generation_config.repetition_penalty = 1.3
    assert config_digest(model) != before
    prompt = Prompt((5, 6), 0, 1, (0, 7))
    assert prompts_digest([prompt]) != prompts_digest([replace(prompt, decoder_ids=(1, 7))])
