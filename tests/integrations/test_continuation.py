"""Likelihoods of references are those of a plain forward pass, and `tune` raises them."""

import numpy as np
import pytest
import torch
from peft_reference import peft_model, set_factors
from tiny import PAD, build_model, kind_of, random_adapter, random_factors

from integrations import NAIVE, ContinuationTask, Speedups, TextExample, UserError, tune
from integrations.architectures import describe
from integrations.candidates import JointCandidates
from integrations.continuation import ContinuationEvaluator
from integrations.evaluators import make_encoder, make_evaluator

PAIRS = (
    ("the film was", "very good and lovely"),
    ("a", "plot"),
    ("the cast is dull , very dull", "w50 w60"),
    ("w7 w8 w9", "w10"),
)
FAMILIES = ["llama", "gpt2", "qwen2", "gemma2", "bloom", "t5", "bart"]
STEPS = {
    "all on": Speedups(),
    "all off": NAIVE,
    "no answer head": Speedups(answer_head=False),
    "padding": Speedups(no_padding=False),
    "blocks of 2": Speedups(blocks=2),
}


def make_task(pairs=PAIRS, pattern="{text} ,", **settings):
    examples = [TextExample({"text": text}, reference) for text, reference in pairs]
    splits = {"train": examples, "dev": examples[:2], "test": examples[1:]}
    return ContinuationTask(**{"name": "toy", "pattern": pattern} | splits | settings)


@torch.no_grad()
def token_losses(model, tokenizer, prompt, reference):
    """Negative log-likelihoods of a reference's tokens, by the model's own loss without a mean."""
    if model.config.is_encoder_decoder:
        labels = tokenizer(reference, return_tensors="pt")["input_ids"]
        inputs = tokenizer(prompt, return_tensors="pt")["input_ids"]
        start = torch.tensor([[model.config.decoder_start_token_id]])
        decoder = torch.cat([start, labels[:, :-1]], dim=1)
        logits = model(input_ids=inputs, decoder_input_ids=decoder).logits[0]
    else:
        bare = tokenizer(prompt)["input_ids"]
        ids = torch.tensor([tokenizer(f"{prompt} {reference}")["input_ids"]])
        logits = model(ids).logits[0, len(bare) - 1 : -1]
        labels = ids[:, len(bare) :]
    loss = torch.nn.functional.cross_entropy(logits.double(), labels[0], reduction="none")
    return loss.tolist()


@pytest.fixture(scope="module", params=FAMILIES)
def measured_by_peft(request, word_tokenizer):
    """A model, its prompts, and candidates of some layers with their losses."""
    model = build_model(request.param)
    arch = describe(model, ("q", "v"))
    tokenizer, adapter = word_tokenizer(arch.kind), random_adapter(arch, [0, 1, 3])
    prompts = make_encoder(make_task(), arch, tokenizer, None).encode(make_task().train)
    tuned, cases = peft_model(model, adapter), {}
    for layer in (3, 2, 0):
        candidates = random_factors(arch, layer, 3, seed=1)
        expected = []
        for p in range(3):
            set_factors(tuned, layer, {name: f[p : p + 1] for name, f in candidates.items()})
            tokens = [token_losses(tuned, tokenizer, f"{t} ,", r) for t, r in PAIRS]
            expected.append(np.mean(np.concatenate(tokens)))
        cases[layer] = (candidates, expected)
        # Layer 2 has nothing in place, so it must have no effect again.
        empty = {n: type(f)(0 * f.A[:1], 0 * f.B[:1]) for n, f in candidates.items()}
        set_factors(tuned, layer, adapter.factors[layer] or empty)
    return arch, prompts, adapter, cases


@pytest.mark.parametrize("steps", STEPS)
def test_losses_are_peft_s_mean_over_tokens_whatever_is_switched_off(measured_by_peft, steps):
    arch, prompts, adapter, cases = measured_by_peft
    evaluator = ContinuationEvaluator(arch, prompts, pad_id=PAD, speedups=STEPS[steps])
    for layer, (candidates, expected) in cases.items():
        for _ in range(2):  # as states are computed and as they are found in the cache
            assert evaluator.evaluate(layer, candidates, adapter) == pytest.approx(expected)


@pytest.mark.parametrize("steps", STEPS)
def test_candidates_of_several_layers_have_the_losses_of_each_in_place(measured_by_peft, steps):
    arch, prompts, adapter, _ = measured_by_peft
    candidates = JointCandidates({i: random_factors(arch, i, 3, seed=2) for i in (1, 3)})
    evaluator = ContinuationEvaluator(arch, prompts, pad_id=PAD, speedups=STEPS[steps])
    expected, tuned = [], adapter.copy()
    for p in range(3):
        candidates[p : p + 1].place(tuned)
        expected.append(evaluator.loss_in_place(tuned))
    assert evaluator.losses(candidates, adapter) == pytest.approx(expected)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_perplexity_is_that_of_a_plain_forward_pass(family, word_tokenizer):
    model = build_model(family)
    arch, tokenizer = describe(model), word_tokenizer(kind_of(family))
    task = make_task()
    evaluator = make_evaluator(
        make_encoder(task, arch, tokenizer, None), arch, task.test, None, Speedups()
    )
    score = evaluator.score(random_adapter(arch, []))
    tokens = [token_losses(model, tokenizer, f"{t} ,", r) for t, r in PAIRS[1:]]
    assert np.exp(score.loss) == pytest.approx(np.exp(np.mean(np.concatenate(tokens))))
    assert (score.score, score.examples) == (-score.loss, 3)


def test_memory_for_the_vocabulary_s_logits_is_limited(word_tokenizer, monkeypatch):
    """Answers that are read at once fit into it, and so do candidates."""
    monkeypatch.setattr("integrations.continuation.MOST_LOGITS", 6 * 300)
    arch = describe(build_model("llama"))
    prompts = make_encoder(make_task(), arch, word_tokenizer("causal"), None).encode(
        make_task().train
    )
    limited = ContinuationEvaluator(arch, prompts, pad_id=PAD)
    rows = []
    arch.head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    candidates, adapter = random_factors(arch, 1, 5), random_adapter(arch)
    losses = limited.evaluate(1, candidates, adapter)
    assert max(rows) <= 6
    monkeypatch.undo()
    whole = ContinuationEvaluator(arch, prompts, pad_id=PAD)
    assert len(whole.batches) < len(limited.batches)
    assert losses == pytest.approx(whole.evaluate(1, candidates, adapter))


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_long_references_count_where_prompts_are_short(family, word_tokenizer, monkeypatch):
    monkeypatch.setattr("integrations.continuation.MOST_LOGITS", 40 * 300)
    task = make_task([("a", " ".join(["plot"] * n)) for n in (12, 15, 9, 14, 11, 3)])
    arch = describe(build_model(family))
    prompts = make_encoder(task, arch, word_tokenizer(arch.kind), None).encode(task.train)
    evaluator = ContinuationEvaluator(arch, prompts, pad_id=PAD)
    assert len(evaluator.batches) > 1
    assert all(batch.decoder_ids.numel() <= 40 for batch in evaluator.batches)
    candidates, adapter = random_factors(arch, 1, 3), random_adapter(arch)
    monkeypatch.undo()
    whole = ContinuationEvaluator(arch, prompts, pad_id=PAD, speedups=NAIVE)
    expected = whole.evaluate(1, candidates, adapter)
    assert evaluator.evaluate(1, candidates, adapter) == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def run(word_tokenizer):
    def run(family="llama", task=None, **arguments):
        settings = {"budget": 40, "dim": 40, "dev_every": 20, "layers": "all"} | arguments
        model = build_model(family, num_hidden_layers=2)
        tokenizer = word_tokenizer(kind_of(family))
        return tune(model, task or make_task(), tokenizer=tokenizer, **settings)

    return run


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_tune_raises_the_likelihood(family, run, tmp_path):
    result = run(family)
    first, last = result.history.scores[0], result.history.scores[-1]
    assert last.train_loss < first.train_loss
    assert first.score == -first.loss
    assert result.settings["loss"] == "nll"
    train = result.test(result.encoder.task.train, frozen=True)
    assert train.loss == pytest.approx(first.train_loss)
    result.save(tmp_path)
    result.plot(tmp_path / "curve.svg")


def test_an_interrupted_run_goes_on_to_the_same_end(run, tmp_path):
    fixed = {"speedups": Speedups(blocks=2)}
    whole = run(**fixed)
    run(**fixed, checkpoint=tmp_path, callback=lambda progress: progress.visit.number == 2)
    resumed = run(**fixed, checkpoint=tmp_path)
    assert resumed.history.visits == whole.history.visits
    other = make_task([*PAIRS[:-1], ("w7 w8 w9", "w11")])
    with pytest.raises(UserError, match="what differs: training prompts"):
        run(**fixed, checkpoint=tmp_path, task=other)


def test_long_prompts_leave_room_for_the_reference(word_tokenizer):
    arch = describe(build_model("llama"))
    task = make_task([("film " * 100, "very good"), ("a", "plot")])
    encoder = make_encoder(task, arch, word_tokenizer("causal"), 12)
    long, short = encoder.encode(task.train[:2])
    words = encoder.tokenizer.convert_ids_to_tokens(long.ids)
    assert words == ["[BOS]", *["film"] * 8, ",", "very"]
    assert (long.answer, len(long.targets)) == (9, 2)
    assert (len(short.ids), short.answer, len(short.targets)) == (3, 2, 1)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_reference_that_is_too_long(kind, word_tokenizer):
    arch = describe(build_model("llama" if kind == "causal" else "bart"))
    task = make_task([("a", "good " * 30)])
    encoder = make_encoder(task, arch, word_tokenizer(kind), 20)
    with pytest.raises(UserError, match=r"'good good .*\.\.\.' has \d+ tokens, and there may be 1"):
        encoder.encode(task.train)


def test_a_reference_that_merges_with_the_prompt(byte_tokenizer):
    arch = describe(build_model("gpt2", vocab_size=1000))
    task = make_task([("the", "lm")], pattern="{text} fi", delimiter="")
    with pytest.raises(UserError, match="merges with the text before it"):
        make_encoder(task, arch, byte_tokenizer("causal"), None).encode(task.train)


@pytest.mark.parametrize("reference", [None, " "])
def test_a_task_without_references(reference):
    with pytest.raises(UserError, match="train example 0 has no reference, which a likelihood"):
        make_task([("a", reference)])


def test_losses_of_label_words_and_masked_models(run):
    with pytest.raises(UserError, match="the task's only loss is 'nll'; got 'hinge'"):
        run(loss="hinge")
    with pytest.raises(UserError, match="needs a model that writes text"):
        run("bert")


def test_a_memory_limit_holds(run):
    with pytest.raises(UserError, match="too little"):
        run(memory_limit=1000)
