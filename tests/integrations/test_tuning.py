"""`tune`: it learns, repeats itself, keeps the best, stops when told, refuses what does not fit."""

import json
import re
from dataclasses import replace
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from sklearn.metrics import f1_score
from tiny import build_model, kind_of, label_logits
from transformers import StableLmConfig, StableLmForCausalLM

from integrations import NAIVE, Speedups, Task, UserError, tune
from integrations.history import History
from integrations.population import PopulationEvaluator
from integrations.prompts import Encoder
from integrations.run_file import RunRecord
from integrations.scoring import Scorer

SMALL = {"num_hidden_layers": 2}
SHORT = {"budget": 60, "dim": 40, "dev_every": 20, "layers": "all"}
IDS = torch.arange(10, 40).view(3, 10)


@pytest.fixture(scope="module", params=["llama", "roberta"])
def family(request):
    return request.param


@pytest.fixture
def run(word_tokenizer, toy_task):
    """run(family, **arguments): a short run on a tiny model, or the one given."""

    def run(model="llama", **arguments):
        if isinstance(model, str):
            model = build_model(model, **SMALL)
        settings = {"task": toy_task, **SHORT} | arguments
        kind = kind_of(model.config.model_type)
        settings.setdefault("tokenizer", word_tokenizer(kind))
        return tune(model, settings.pop("task"), **settings)

    return run


def course_of(result):
    """The history without its wall times, which no two runs share."""
    course = result.history.to_dict()
    for score in course["scores"]:
        del score["seconds"]
    return course


def factors_of(adapter):
    return [
        tensor
        for factors in adapter.factors
        for f in (factors or {}).values()
        for tensor in (f.A, f.B)
    ]


# -- learning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["lotfwa", "cma-es"])
def test_the_training_loss_falls(run, family, optimizer):
    result = run(family, optimizer=optimizer, budget=300)
    first, last = result.history.scores[0], result.history.scores[-1]
    assert last.train_loss < 0.7 * first.train_loss
    assert result.history.visits[-1].evaluations == 300
    assert result.stopped == "budget"


def test_scores_are_those_of_the_deltas_on_each_split(run, family, toy_task):
    """Independently: the frozen model prompt by prompt."""
    result = run(family)
    encoder, model = result.encoder, result.adapter.arch.model
    frozen = result.test(frozen=True)
    prompts = encoder.encode(toy_task.test)
    labels = torch.tensor([prompt.label for prompt in prompts])
    logits = label_logits(model, prompts, encoder.label_ids)
    assert frozen.examples == len(toy_task.test)
    assert frozen.score == (logits.argmax(dim=1) == labels).double().mean()
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert frozen.loss == pytest.approx(expected, abs=1e-5)
    first = result.history.scores[0]
    dev = result.test(toy_task.dev, frozen=True)
    assert (first.score, first.loss) == (dev.score, pytest.approx(dev.loss))
    train = result.test(toy_task.train, frozen=True)
    assert first.train_loss == pytest.approx(train.loss, abs=1e-5)


def test_the_metric_itself_as_the_loss(run, toy_task):
    """F1 on all training examples, which no mean over batches of them is."""
    task = replace(toy_task, metric="f1")
    result = run(task=task, loss="metric", seed=2)
    model, tokenizer = result.adapter.arch.model, result.encoder.tokenizer
    prompts = Encoder(task, tokenizer, "causal").encode(task.train)
    answers = label_logits(model, prompts, result.encoder.label_ids).argmax(dim=1)
    truth = [example.label for example in task.train]
    first, last = result.history.scores[0], result.history.scores[-1]
    assert first.train_loss == pytest.approx(-f1_score(truth, answers))
    assert last.train_loss < first.train_loss
    train = result.test(task.train)
    assert result.settings["loss"] == "metric"
    assert train.loss == -train.score


@pytest.mark.parametrize("loss", ["ce", "hinge", "error", "metric"])
@pytest.mark.parametrize("targets", [("q",), ("k", "o"), ("q", "k", "v", "o")])
def test_every_loss_and_set_of_targets(run, loss, targets):
    result = run(loss=loss, targets=targets)
    scores = result.history.scores
    assert scores[-1].train_loss <= scores[0].train_loss
    placed = [set(factors) for factors in result.adapter.factors if factors]
    assert all(names == set(targets) for names in placed)


@pytest.mark.parametrize("init", ["calibrated", "paper", "reference-code", "normal"])
@pytest.mark.parametrize("schedule", ["generation-major", "block"])
def test_every_init_and_schedule(run, init, schedule):
    result = run(init=init, schedule=schedule)
    order = [visit.layer for visit in result.history.visits]
    per_stop = {"generation-major": 1, "block": 3}[schedule]
    assert order == [i // per_stop % 2 for i in range(len(order))]
    assert result.settings["init"] == init


@pytest.mark.parametrize("optimizer", ["lotfwa", "sep-cma-es", "lm-ma-es"])
def test_a_joint_run_has_one_optimizer_for_all_layers(run, optimizer, tmp_path):
    result = run(schedule="joint", optimizer=optimizer, layers="all", budget=120)
    visits, scores = result.history.visits, result.history.scores
    assert {visit.layer for visit in visits} == {None}
    assert scores[-1].train_loss < scores[0].train_loss
    assert all(result.adapter.factors)  # a candidate that takes the place does so in all layers
    result.save(tmp_path)
    assert RunRecord.read(tmp_path).history == result.history
    result.plot(tmp_path / "curve.png")


def test_a_joint_covariance_matrix_that_is_too_large_is_refused_at_once(run):
    with pytest.raises(UserError, match=r"6000 x 6000 numbers; .*'lm-ma-es', 'sep-cma-es' or"):
        run(schedule="joint", layers="all", dim=3000, optimizer="cma-es")
    run(schedule="joint", layers="all", dim=3000, optimizer="sep-cma-es", budget=4)


def test_a_cost_aware_run_tries_all_layers_and_then_those_that_pay(run):
    visits = run(schedule="cost-aware", layers="all", budget=200).history.visits
    order = [visit.layer for visit in visits]
    assert order[:2] == [0, 1]
    assert order != [i % 2 for i in range(len(order))]
    assert {*order[-20:]} == {0, 1}


@pytest.mark.parametrize("layers", [[-1], None])
def test_only_chosen_layers_are_tuned_and_the_upper_half_unless_told(run, layers):
    result = run(layers=layers, budget=100, optimizer="cma-es")
    assert result.settings["layers"] == [1]
    assert {visit.layer for visit in result.history.visits} == {1}
    assert result.adapter.factors[0] is None
    assert result.adapter.factors[1] is not None


@pytest.mark.parametrize(
    ("arguments", "frozen"),
    [
        ({}, True),
        ({"optimizer": "cma-es"}, False),
        ({"freeze_a": False}, False),
        ({"optimizer": "cma-es", "freeze_a": True}, True),
        ({"preset": "paper"}, False),
    ],
)
def test_fireworks_search_for_b_alone_unless_told_otherwise(run, arguments, frozen):
    assert run(budget=20, **arguments).settings["freeze_a"] is frozen


def test_speedups_change_nothing_but_the_time(run):
    fast, naive = run(budget=40, speedups=Speedups()), run(budget=40, speedups=NAIVE)
    for a, b in zip(fast.history.scores, naive.history.scores, strict=True):
        assert (a.score, a.loss) == (b.score, pytest.approx(b.loss, abs=1e-4))


# -- the same again --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["lotfwa", "cma-es", "random", "nevergrad:OnePlusOne"])
def test_the_seed_decides_everything(run, optimizer):
    first, again, other = (run(optimizer=optimizer, seed=seed) for seed in (3, 3, 4))
    assert course_of(first) == course_of(again)
    pairs = zip(factors_of(first.adapter), factors_of(again.adapter), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert course_of(first) != course_of(other)


def test_the_seed_is_the_only_source_of_randomness(run):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the point is that it has no effect)
    first = run()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert course_of(run()) == course_of(first)
    torch.manual_seed(1)
    build_model("llama", **SMALL)
    assert torch.equal(torch.get_rng_state(), state)


# -- what is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [8, 1])  # with one example nearly all scores are equal
@pytest.mark.parametrize("optimizer", ["lotfwa", "random"])
def test_the_deltas_with_the_best_development_score_are_kept(
    run, family, toy_task, optimizer, examples
):
    """And among equal scores those with the lowest loss."""
    task = replace(toy_task, dev=toy_task.dev[-examples:])
    result = run(family, task=task, optimizer=optimizer, budget=120, dev_every=10)
    scores = result.history.scores
    best = max(scores, key=lambda s: (s.score, -s.loss))
    assert result.history.best == best
    now = Scorer(result.adapter.arch, result.encoder, task.dev)(result.adapter)
    assert (now.score, now.loss) == (best.score, pytest.approx(best.loss, abs=1e-5))
    marked = [score for score in scores if score.best]
    order = [(score.score, -score.loss) for score in marked]
    assert order == sorted(order)


def test_the_development_set_is_looked_at_as_often_as_said(run):
    result = run("llama", budget=100, dev_every=30, popsize=5)
    looks = [score.evaluations for score in result.history.scores]
    assert looks[0] == 0
    assert looks[-1] == 100
    visits = [visit.evaluations for visit in result.history.visits]
    expected, last = [0], 0
    for evaluations in visits:
        if evaluations - last >= 30 or evaluations == 100:
            last = evaluations
            expected.append(last)
    assert looks == expected


@pytest.mark.parametrize("family", ["llama", "roberta", "bart"])
def test_a_saved_result_is_the_same_in_peft(run, family, tmp_path, toy_task):
    result = run(family, budget=100)
    folder = result.save(tmp_path / "adapter")
    tuned = peft.PeftModel.from_pretrained(build_model(family, **SMALL), folder).eval()
    prompts = result.encoder.encode(toy_task.test)
    labels = torch.tensor([prompt.label for prompt in prompts])
    logits = label_logits(tuned, prompts, result.encoder.label_ids)
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert result.test().loss == pytest.approx(expected, abs=1e-4)
    assert result.test().loss != pytest.approx(result.test(frozen=True).loss, abs=1e-3)


def test_the_record_beside_the_adapter_tells_the_course_of_the_run(run, tmp_path):
    result = run(patience=None)
    record = json.loads((result.save(tmp_path) / "dfo_lora.json").read_text())
    assert History.from_dict(record["history"]) == result.history
    assert record["settings"] == result.settings
    assert record["stopped"] == "budget"
    made_with = record["circumstances"]
    assert (made_with["dtype"], made_with["device"]) == ("float32", "cpu")
    assert made_with["versions"]["torch"] == version("torch")


# -- ending ----------------------------------------------------------------------------------------


def test_patience_ends_a_run_without_better_development_scores(run):
    """Deltas so weak that they change nothing: the first look stays the best."""
    result = run(init="normal", init_std=1e-30, budget=400, patience=50, dev_every=10)
    assert result.stopped == "patience"
    assert result.history.best.evaluations == 0
    assert 50 <= result.history.visits[-1].evaluations < 60


def test_patience_looks_before_it_ends_a_run(run, monkeypatch):
    """What no look has seen yet may be the best."""
    looks = []
    own = Scorer.__call__

    def better_each_time(self, *arguments):
        looks.append(own(self, *arguments))
        return replace(looks[-1], score=len(looks) / 1000)

    monkeypatch.setattr(Scorer, "__call__", better_each_time)
    result = run(budget=100, patience=20, dev_every=50)
    assert (result.stopped, result.history.best.evaluations) == ("budget", 100)
    assert 4 <= len(looks) - 1 <= 6  # one each time that patience would have ended it


def test_without_patience_the_budget_ends_it(run):
    result = run(init="normal", init_std=1e-30, budget=80, patience=None)
    assert result.stopped == "budget"
    assert result.history.visits[-1].evaluations == 80


def test_a_callback_sees_each_generation_and_may_end_the_run(run):
    seen = []

    def callback(progress):
        seen.append(progress)
        return len(seen) == 4

    result = run(callback=callback, budget=400)
    assert result.stopped == "callback"
    assert [progress.visit for progress in seen] == result.history.visits
    assert result.history.scores[-1].evaluations == seen[-1].visit.evaluations
    assert all(progress.budget == 400 for progress in seen)
    assert all(progress.best in result.history.scores for progress in seen)
    looks = {progress.dev.evaluations for progress in seen if progress.new_dev}
    assert looks <= {score.evaluations for score in result.history.scores}


def test_a_callback_that_says_nothing_lets_it_run(run):
    assert run(callback=lambda progress: None).stopped == "budget"


def test_time_that_is_up_ends_it_after_a_generation(run):
    seen = []
    result = run(seconds=1e-9, budget=400, callback=seen.append)
    assert result.stopped == "seconds"
    assert len(result.history.visits) == len(seen) == 1
    assert result.history.scores[-1].evaluations == seen[-1].visit.evaluations
    assert seen[-1].seconds_left == 0


# -- the model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_as_it_was(run, family, training, fails):
    model = build_model(family, **SMALL)
    with torch.no_grad():
        before = model(input_ids=IDS).logits
    model.train(training)
    model.get_input_embeddings().eval()
    modes = [module.training for module in model.modules()]

    def callback(progress):
        if fails and progress.visit.number == 3:
            raise KeyboardInterrupt

    try:
        run(model, callback=callback)
        assert not fails
    except KeyboardInterrupt:
        assert fails
    assert [module.training for module in model.modules()] == modes
    assert not any("forward" in vars(module) for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=IDS).logits, before)


def test_dropout_is_off_while_tuning_a_model_in_training_mode(run):
    settings = SMALL | {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    model = build_model("roberta", **settings)
    evaluating = course_of(run(model))
    assert course_of(run(model.train())) == evaluating


def test_a_tokenizer_is_found_where_the_model_came_from(run, word_tokenizer, toy_task, tmp_path):
    model = build_model("llama", **SMALL)
    model.save_pretrained(tmp_path)
    expected = course_of(run(model))
    with pytest.raises(UserError, match=r"no tokenizer found .*pass tokenizer=\.\.\."):
        run(model, tokenizer=None)
    word_tokenizer("causal").save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert course_of(run(loaded, tokenizer=None)) == expected
    by_name = tune(str(tmp_path), toy_task, **SHORT)
    assert course_of(by_name) == expected


# -- what does not fit -----------------------------------------------------------------------------


class NoTell:
    def ask(self):
        return [0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam'.*cma-es"),
        ({"optimizer": "nevergrad:Nope"}, "Nope"),
        ({"optimizer": "no.such.module:Thing"}, "'no.such.module:Thing': No module named"),
        ({"optimizer": NoTell()}, r"NoTell has no method tell\(\)"),
        ({"optimizer": 3}, "int has no method ask"),
        ({"loss": "mse"}, "unknown loss 'mse'. Known: ce"),
        ({"schedule": "generation-minor"}, "did you mean 'generation-major'"),
        ({"targets": ("q", "w")}, "unknown target 'w'"),
        ({"targets": ()}, "targets must name one or more"),
        ({"layers": [2]}, "layers has 2, but the model has layers 0 to 1"),
        ({"init": "xavier"}, "unknown init 'xavier'"),
        ({"rank": 0}, "rank must be a whole number of 1 or more"),
        ({"dim": 41}, "dim must divide into 2 equal parts"),
        ({"budget": 0}, "budget must be a whole number of 1 or more; got 0"),
        ({"budget": 10.5}, "budget must be a whole number of 1 or more; got 10.5"),
        ({"seconds": 0}, "seconds must be positive; got 0"),
        ({"seconds": float("nan")}, "seconds must be positive; got nan"),
        ({"seconds": "60"}, "seconds must be positive; got '60'"),
        ({"layers": 3}, "layers must be indices or 'all'; got 3"),
        ({"layers": [0.5]}, r"layers must be indices or 'all'; got \[0.5\]"),
        ({"targets": None}, r"targets must be a list such as \['q', 'v'\]; got None"),
        ({"dev_every": 0}, "dev_every must be a whole number of 1 or more"),
        ({"patience": 0}, "patience must be a whole number of 1 or more"),
        ({"popsize": 1}, "popsize"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_any_work(run, arguments, message):
    model = build_model("llama", **SMALL)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(UserError, match=message) as error:
        run(model, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_task_needs_training_and_development_examples(run, toy_task, split):
    with pytest.raises(UserError, match=f"task 'toy' has no {split} examples"):
        run(task=replace(toy_task, **{split: ()}))


def test_a_task_without_a_pattern_for_the_model(run, toy_task):
    only_masked = replace(toy_task, patterns={"masked": toy_task.patterns["masked"]})
    with pytest.raises(UserError, match="has no pattern for causal models"):
        run(task=only_masked)


def test_a_result_without_test_examples(run, toy_task):
    result = run(task=replace(toy_task, test=()), budget=10)
    with pytest.raises(UserError, match=r"has no test examples; pass some to test\(\)"):
        result.test()
    assert result.test(toy_task.test).examples == len(toy_task.test)


def test_a_family_that_is_not_in_the_table_names_the_row_to_add(run):
    config = StableLmConfig(vocab_size=300, hidden_size=64, num_hidden_layers=1)
    with pytest.raises(UserError, match="add a row 'stablelm' to FAMILIES"):
        run(StableLmForCausalLM(config), tokenizer=None)


def test_a_model_without_its_language_head_says_what_to_load(run, family):
    with pytest.raises(UserError, match=r"no language head .*AutoModelFor(Causal|Masked)LM"):
        run(build_model(family).base_model)


def test_what_is_no_model_at_all(toy_task, word_tokenizer):
    with pytest.raises(UserError, match=r"must be a transformers PreTrainedModel .*got Linear"):
        tune(torch.nn.Linear(2, 2), toy_task)
    with pytest.raises(UserError, match="tokenizer has no effect on a model given by name"):
        tune("name", toy_task, tokenizer=word_tokenizer("causal"))
    with pytest.raises(UserError, match=re.escape("model 'no/such/model' cannot be loaded")):
        tune("no/such/model", toy_task)


def test_a_model_of_another_type_or_with_deltas_in_it_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"is of type torch\.float64; convert it to one of"):
        run(build_model("llama", **SMALL).double(), checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    model = build_model("llama", **SMALL)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), model)
    with pytest.raises(UserError, match="q_proj has a LoRA adapter of PEFT in it already; merge"):
        run(model)


def test_a_model_on_several_devices_is_refused(run):
    model = build_model("llama", **SMALL)
    there = [SimpleNamespace(device=torch.device("cuda", i), is_meta=i > 1) for i in range(3)]
    model.parameters = lambda *_: iter(there)  # offloaded ones are on none
    with pytest.raises(UserError, match=r"lies on several devices \(cuda:0, cuda:1\)"):
        run(model)


def test_a_model_that_overflows_within_is_refused(run):
    model = build_model("llama", **SMALL)
    model.get_input_embeddings().weight.data.fill_(float("inf"))
    with pytest.raises(UserError, match=r"goes through .*layers.0.self_attn.q_proj .* is not fini"):
        run(model)


def test_a_model_whose_losses_overflow_is_refused(run):
    model = build_model("llama", **SMALL)
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="training loss is nan; load it in a type that does not"):
        run(model)


def test_a_model_that_overflows_on_development_texts_is_refused(
    run, toy_task, word_tokenizer, tmp_path
):
    model = build_model("llama", **SMALL)
    token = word_tokenizer("causal").convert_tokens_to_ids("w7")
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    odd = [replace(e, fields={"text": f"w7 {e.fields['text']}"}) for e in toy_task.dev]
    task = toy_task.with_splits(toy_task.train, odd, ())
    with pytest.raises(UserError, match="development loss is nan; load it in a type that"):
        run(model, task=task, checkpoint=tmp_path)
    assert not any(tmp_path.iterdir())


def test_texts_longer_than_the_model_can_take_are_cut(run, toy_task):
    def longer(examples):
        return [replace(e, fields={"text": e.fields["text"] + " very" * 200}) for e in examples]

    task = Task("toy", toy_task.patterns, toy_task.label_words).with_splits(
        longer(toy_task.train), longer(toy_task.dev), ()
    )
    result = run(task=task, budget=10)
    assert result.settings["max_length"] == 64
    assert run(task=task, budget=10, max_length=20).settings["max_length"] == 20


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("seed", value) for value in (-1, None, 1.5, 2**70)),
        *(("rank", value) for value in (0, 2.0)),
        ("dim", "500"),
        ("budget", 0),
        ("dev_every", 0),
        ("patience", -1),
        ("init_std", "a"),
    ],
)
def test_a_number_that_does_not_fit_is_named_with_its_value(run, setting, value):
    with pytest.raises(UserError, match=f"{setting} must be a .*{re.escape(repr(value))}"):
        run(**{setting: value})


LIBRARIES = {
    "cma-es": lambda: "cma-es",
    "pycma": lambda: "pycma",
    "nevergrad:OnePlusOne": lambda: "nevergrad:OnePlusOne",
    "nevergrad:DE": lambda: "nevergrad:DE",
    "nevergrad:NGOpt": lambda: "nevergrad:NGOpt",
    "cmaes": lambda: "cmaes",
    "optuna:TPE": lambda: "optuna:TPE",
    "a class of nevergrad's": lambda: pytest.importorskip("nevergrad").optimizers.PSO,
    "a sampler of optuna's": lambda: pytest.importorskip("optuna").samplers.TPESampler(seed=0),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_lowers_the_loss_of_the_same_task(run, name):
    if name in ("cmaes", "optuna:TPE"):
        pytest.importorskip(name.partition(":")[0])
    result = run(optimizer=LIBRARIES[name](), budget=80)
    assert result.history.scores[-1].evaluations == 80
    assert result.history.visits[-1].loss < result.history.scores[0].train_loss


def test_numpy_s_numbers_are_numbers_too(run, tmp_path):
    result = run(
        budget=np.int64(10), seed=np.int64(1), rank=np.int32(2), popsize=np.int64(5),
        max_length=np.int16(40), init_std=np.float64(0.5), seconds=np.float32(60),
    )  # fmt: skip
    result.save(tmp_path)
    settings = json.loads((tmp_path / "dfo_lora.json").read_text())["settings"]
    assert [settings[name] for name in ("rank", "popsize", "max_length")] == [2, 5, 40]
    assert (settings["init_std"], settings["seconds"]) == (0.5, 60)


def test_numpy_s_truths_are_truths_too(run, tmp_path):
    result = run(budget=10, freeze_a=np.True_, incumbent=np.False_, speedups=Speedups(np.True_))
    result.save(tmp_path)
    settings = json.loads((tmp_path / "dfo_lora.json").read_text())["settings"]
    assert (settings["freeze_a"], settings["incumbent"]) == (True, False)
    assert Speedups(blocks=np.int64(4)).blocks.__class__ is int


def test_new_texts_are_predicted(run, family, toy_task, word_tokenizer):
    model = build_model(family, **SMALL)
    result = run(model)
    texts = [example.fields for example in toy_task.test]
    tuned, zero_shot = result.logits(texts), result.logits(toy_task.test, frozen=True)
    prompts = result.encoder.encode(toy_task.test)
    expected = label_logits(model, prompts, result.encoder.label_ids).numpy()
    assert zero_shot == pytest.approx(expected, abs=1e-4)
    assert np.abs(tuned - zero_shot).max() > 1e-3
    predicted = result.predict(texts)
    assert predicted.tolist() == tuned.argmax(axis=1).tolist()
    labels = [example.label for example in toy_task.test]
    assert np.mean(predicted == labels) == result.test().score
    with pytest.raises(UserError, match="test example 0 has no field 'text'"):
        result.predict([{"review": "the film"}])
    for wrong in ([], "the film", ["the film"], {"text": "the film"}):
        with pytest.raises(
            UserError, match=r"list of fields such as \[\{'text': \.\.\.\}\], one a"
        ):
            result.predict(wrong)


def test_a_class_of_the_users_own_is_an_optimizer(run):
    class Gaussian:
        def __init__(self, dim, seed):
            self.dim, self.rng = dim, np.random.default_rng(seed)

        def ask(self):
            return self.rng.normal(size=(3, self.dim))

        def tell(self, points, losses):
            assert len(points) == len(losses)

    assert run(optimizer=Gaussian, budget=12).settings["optimizer"] == "Gaussian"


def test_a_run_without_any_finite_loss_is_saved_as_json(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        PopulationEvaluator,
        "losses",
        lambda self, candidates, adapter: np.full(len(candidates), np.nan),
    )
    result = run(budget=10)
    result.save(tmp_path)

    def refuse(name):
        raise AssertionError(name)

    record = json.loads((tmp_path / "dfo_lora.json").read_text(), parse_constant=refuse)
    assert History.from_dict(record["history"]) == result.history
    assert result.history.invalid == 10


# -- losses of one's own ---------------------------------------------------------------------------


def brier(logits, labels):
    """Squared distance of the label words' probabilities from the truth, (...)."""
    truth = torch.nn.functional.one_hot(labels, logits.shape[-1])
    return (logits.softmax(dim=-1) - truth).square().sum(dim=-1).mean(dim=-1)


def test_a_function_as_the_loss(run, toy_task):
    """Independently: the frozen model prompt by prompt."""
    result = run(loss=brier)
    first, last = result.history.scores[0], result.history.scores[-1]
    prompts = result.encoder.encode(toy_task.train)
    logits = label_logits(result.adapter.arch.model, prompts, result.encoder.label_ids)
    expected = brier(logits, torch.tensor([prompt.label for prompt in prompts])).item()
    assert first.train_loss == pytest.approx(expected, abs=1e-5)
    assert last.train_loss < first.train_loss
    assert result.settings["loss"] == "brier"
    assert result.test(toy_task.train, frozen=True).loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda logits, labels: logits.mean(dim=-1), r"shape \(16,\)|shape \(8,\)"),
        (lambda logits, labels: "low", "str"),
        (lambda logits, labels: None, "NoneType"),
    ],
)
def test_a_function_that_returns_no_losses(run, loss, got):
    with pytest.raises(UserError, match=f"must return one number a candidate.*got ({got})"):
        run(loss=loss)


def test_a_function_is_no_loss_of_a_checkpoint_with_another(run, tmp_path):
    run(loss=brier, checkpoint=tmp_path)
    with pytest.raises(UserError, match=r"what differs: loss \(there brier, here ce\)"):
        run(checkpoint=tmp_path)
