"""Label words that begin alike are told apart by all of their tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft_reference import peft_model, set_factors
from tiny import MASKED, SEQ2SEQ, build_model, kind_of, random_adapter, random_factors
from tokenizers import AddedToken
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


FAMILIES = ["llama", "gpt2", *MASKED, *SEQ2SEQ]


@pytest.fixture(params=FAMILIES)
def arch(request):
    return describe(build_model(request.param, vocab_size=1100))


@pytest.fixture
def tokenizer(arch, byte_tokenizer):
    return with_sentinel(byte_tokenizer(arch.kind), arch.model.config.model_type)


def with_sentinel(tokenizer, family):
    if family == "t5":
        # As a mask, it takes the space before it along.
        sentinel = AddedToken("<extra_id_0>", lstrip=True, special=True)
        tokenizer.add_special_tokens({"additional_special_tokens": [sentinel]})
    return tokenizer


def log_likelihoods(model, tokenizer):
    """Of each word after each text, (N, C), from one plain call a word."""
    found = []
    for text in TEXTS:
        for word in WORDS:
            ids, targets = predicted(model.config.model_type, tokenizer, text, word)
            logits = model(**{name: torch.tensor([row]) for name, row in ids.items()}).logits
            log_p = logits[0].log_softmax(dim=-1)
            found.append(sum(log_p[place, token] for place, token in targets))
    return torch.stack(found).view(len(TEXTS), len(WORDS))


def predicted(family, tokenizer, text, word):
    """What a model reads, and where it predicts which tokens of the word."""
    before = tokenizer(f"{text} It was", add_special_tokens=False)["input_ids"]
    told = tokenizer(f"{text} It was {word}", add_special_tokens=False)["input_ids"]
    word = told[len(before) :]
    if family in ("llama", "gpt2"):
        places = range(len(before) - 1, len(told) - 1)
        return {"input_ids": told}, zip(places, word, strict=True)
    cls, sep, mask = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "[MASK]"])
    after = tokenizer(" .", add_special_tokens=False)["input_ids"]
    if family == "t5":
        sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
        ids = {"input_ids": [cls, *before, sentinel, *after, sep]}
        said = [tokenizer.pad_token_id, sentinel]
    elif family == "bart":
        ids = {"input_ids": [cls, *before, mask, *after, sep]}
        said = [sep, cls, *before]
    else:
        ids = {"input_ids": [cls, *before, *[mask] * len(word), *after, sep]}
        return ids, zip(range(1 + len(before), 99), word, strict=False)
    ids["decoder_input_ids"] = [*said, *word]
    return ids, zip(range(len(said) - 1, 99), word, strict=False)


@pytest.mark.parametrize("speedups", [FAST, NAIVE, Speedups(blocks=2, no_padding=False)])
@torch.no_grad()
def test_losses_are_those_of_whole_words_with_peft(arch, tokenizer, speedups):
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
    assert np.ptp(losses) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
@torch.no_grad()
def test_little_memory_changes_nothing(family, byte_tokenizer):
    arch = describe(build_model(family, vocab_size=1100))
    tokenizer = with_sentinel(byte_tokenizer(arch.kind), family)
    encoder = make_encoder(task_of(), arch, tokenizer, None)
    adapter, candidates = random_adapter(arch, [0, 2]), random_factors(arch, 2, 5, seed=1)
    found = []
    for limit in (None, 3_000_000):
        evaluator = make_evaluator(encoder, arch, TRAIN, "ce", FAST, memory_limit=limit)
        with evaluating(arch.model):
            found.append(evaluator.evaluate(2, candidates, adapter))
    assert found[1] == pytest.approx(found[0], abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert", "bart"])
@pytest.mark.parametrize("arguments", [{}, {"loss": "hinge", "workers": 2}, {"loss": "metric"}])
def test_a_run(family, byte_tokenizer, arguments):
    result = tune(
        build_model(family, vocab_size=1000),
        task_of(),
        tokenizer=byte_tokenizer(kind_of(family)),
        budget=30,
        dim=40,
        dev_every=10,
        **arguments,
    )
    losses = [visit.loss for visit in result.history.visits]
    start = result.history.scores[0].train_loss
    assert losses[-1] < start or (losses[-1] == start and arguments == {"loss": "metric"})
    assert result.test().examples == len(TRAIN) - 1


def test_words_that_differ_at_once_take_one_prompt(arch, tokenizer):
    encoder = make_encoder(task_of(("bad", "great")), arch, tokenizer, None)
    assert len(encoder.encode(TRAIN)) == len(TRAIN)


def test_long_texts_leave_room_for_the_longest_word(arch, tokenizer):
    long = [Example({"text": "the very good film " * 50}, 0)]
    encoder = make_encoder(task_of(), arch, tokenizer, 40)
    prompts = encoder.encode(long)
    assert {prompt.answer for prompt in prompts} == {prompts[0].answer}
    assert 30 < max(prompt.length for prompt in prompts) <= 40
    for prompt, word in zip(prompts, WORDS, strict=True):
        assert tokenizer.decode(prompt.targets).strip() == word
        written = tokenizer.decode(prompt.ids)
        if arch.kind == "causal":
            assert f"{written}{tokenizer.decode(prompt.targets[-1])}".endswith(f" It was {word}")
        elif arch.kind == "masked":
            assert written.endswith(f" It was{'[MASK]' * len(prompt.targets)} .[SEP]")
        else:
            assert written.endswith(f" It was{encoder.blank} .[SEP]")


def test_a_word_that_is_unknown_in_part_is_refused(word_tokenizer):
    arch = describe(build_model("roberta"))
    task = task_of(("bad film", "bad splendid"))
    with pytest.raises(UserError, match="'bad splendid' is not known to the tokenizer in full"):
        make_encoder(task, arch, word_tokenizer("masked"), None)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_word_that_begins_another_is_refused(byte_tokenizer, kind):
    arch = describe(build_model("llama" if kind == "causal" else "bart", vocab_size=1000))
    with pytest.raises(UserError, match="'bad film' and 'bad' begin with the same token, and one"):
        make_encoder(task_of(("bad", "bad film")), arch, byte_tokenizer(kind), None)


def test_a_masked_model_takes_a_word_that_begins_another_but_not_itself(byte_tokenizer):
    arch = describe(build_model("roberta", vocab_size=1000))
    tokenizer = byte_tokenizer("masked")
    encoder = make_encoder(task_of(("bad", "bad film")), arch, tokenizer, None)
    assert [len(prompt.targets) for prompt in encoder.encode(TRAIN[:1])] == [1, 2]
    with pytest.raises(UserError, match="choose words of which none begins another"):
        make_encoder(task_of(("bad", "bad")), arch, tokenizer, None)
