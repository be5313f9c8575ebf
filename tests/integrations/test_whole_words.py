"""Label words that begin alike are told apart by all of their tokens, on causal models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft_reference import peft_model, set_factors
from tiny import build_model, random_adapter, random_factors
from torch.nn import functional as F

from integrations import NAIVE, Example, Task, UserError, tune
from integrations.architectures import describe
from integrations.evaluators import make_encoder, make_evaluator
from integrations.patches import evaluating
from integrations.population import FAST, Speedups

WORDS = ("greatest", "greatness", "bad film")
TEXTS = ["the film", "very good", "a bad film it was", "the", "great and good"]
TRAIN = [Example({"text": text}, label % 3) for label, text in enumerate(TEXTS)]


def task_of(words=WORDS):
    patterns = {"causal": "{text} It was", "masked": "{text} It was {mask} ."}
    train = [replace(example, label=example.label % len(words)) for example in TRAIN]
    return Task("toy", patterns, words, train=train, dev=train[:3], test=train[1:])


@pytest.fixture(params=["llama", "gpt2"])
def arch(request):
    return describe(build_model(request.param, vocab_size=1000))


def log_likelihoods(model, tokenizer):
    """Of each word after each text, (N, C), from one plain call a word."""
    found = []
    for text in TEXTS:
        before = tokenizer(f"{text} It was")["input_ids"]
        for word in WORDS:
            ids = tokenizer(f"{text} It was {word}")["input_ids"]
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
            places = range(len(before), len(ids))
            found.append(sum(log_p[place - 1, ids[place]] for place in places))
    return torch.stack(found).view(len(TEXTS), len(WORDS))


@pytest.mark.parametrize("speedups", [FAST, NAIVE, Speedups(blocks=2, no_padding=False)])
@torch.no_grad()
def test_losses_are_those_of_whole_words_with_peft(arch, byte_tokenizer, speedups):
    tokenizer = byte_tokenizer("causal")
    encoder = make_encoder(task_of(), arch, tokenizer, None)
    evaluator = make_evaluator(encoder, arch, TRAIN, "ce", speedups)
    adapter, candidates = random_adapter(arch, [0, 2]), random_factors(arch, 2, 5, seed=1)
    labels = torch.tensor([example.label for example in TRAIN])
    tuned = peft_model(arch.model, adapter)
    expected = log_likelihoods(tuned, tokenizer)
    with evaluating(arch.model):
        losses = evaluator.evaluate(2, candidates, adapter)
        assert evaluator.logits(adapter) == pytest.approx(expected.numpy(), abs=1e-4)
        score = evaluator.score(adapter)
        in_place = evaluator.loss_in_place(adapter)
    assert score.score == (expected.argmax(dim=1) == labels).double().mean().item()
    assert score.examples == len(TRAIN)
    loss = F.cross_entropy(expected, labels).item()
    assert in_place == score.loss == pytest.approx(loss, abs=1e-5)
    for p, loss in enumerate(losses):
        set_factors(tuned, 2, {name: f[p : p + 1] for name, f in candidates.items()})
        words = log_likelihoods(tuned, tokenizer)
        assert loss == pytest.approx(F.cross_entropy(words, labels).item(), abs=1e-5)
    assert np.ptp(losses) > 0.01


@pytest.mark.parametrize("arguments", [{}, {"loss": "hinge", "workers": 2}, {"loss": "metric"}])
def test_a_run(byte_tokenizer, arguments):
    result = tune(
        build_model("llama", vocab_size=1000, num_hidden_layers=2),
        task_of(),
        tokenizer=byte_tokenizer("causal"),
        budget=30,
        dim=40,
        dev_every=10,
        **arguments,
    )
    losses = [visit.loss for visit in result.history.visits]
    start = result.history.scores[0].train_loss
    assert losses[-1] < start or (losses[-1] == start and arguments == {"loss": "metric"})
    assert result.test().examples == len(TRAIN) - 1


def test_words_that_differ_at_once_take_one_prompt(arch, byte_tokenizer):
    encoder = make_encoder(task_of(("bad", "great")), arch, byte_tokenizer("causal"), None)
    assert len(encoder.encode(TRAIN)) == len(TRAIN)


def test_long_texts_leave_room_for_the_longest_word(arch, byte_tokenizer):
    long = [Example({"text": "the very good film " * 50}, 0)]
    encoder = make_encoder(task_of(), arch, byte_tokenizer("causal"), 40)
    prompts = encoder.encode(long)
    assert {prompt.answer for prompt in prompts} == {prompts[0].answer}
    assert max(prompt.length for prompt in prompts) <= 40
    tokenizer = encoder.tokenizer
    for prompt, word in zip(prompts, WORDS, strict=True):
        text = tokenizer.decode([*prompt.ids, prompt.targets[-1]])
        assert text.endswith(f" It was {word}")


def test_a_word_that_begins_another_is_refused(arch, byte_tokenizer):
    with pytest.raises(UserError, match="'bad film' and 'bad' begin with the same token, and one"):
        make_encoder(task_of(("bad", "bad film")), arch, byte_tokenizer("causal"), None)


def test_a_masked_model_reads_one_token(byte_tokenizer):
    arch = describe(build_model("roberta", vocab_size=1000))
    with pytest.raises(UserError, match="choose words whose first tokens differ"):
        make_encoder(task_of(), arch, byte_tokenizer("masked"), None)
