"""GAP3 fills holes with the tokens that tell most about label words, and keeps what does best."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from prompt_trials import FAMILIES, few, make_trial
from torch.nn import functional as F

from integrations.errors import UserError
from integrations.methods.gap3 import GAP3
from integrations.methods.prompt_chunks import HOLE, ChunkedPrompts
from integrations.methods.trial import fit
from integrations.tasks import Example, Task


@pytest.fixture(params=FAMILIES)
def trial(request, word_tokenizer, toy_task):
    return make_trial(request.param, word_tokenizer, few(toy_task))


def text_of(trial, example, chunks, label="", bare=False):
    """A prompt as text: chunk, text, chunk, label word. ``bare`` leaves out what closes it."""
    first, second = (" ".join(chunk) for chunk in chunks)
    return f"{first} {example.fields['text']} {second} {label}"


@torch.no_grad()
def log_p(trial, text):
    """Log-probabilities (T, V) of a text, and its token ids."""
    ids = trial.encoder.tokenizer(" ".join(text.split()))["input_ids"]
    return F.log_softmax(trial.arch.model(torch.tensor([ids])).logits[0].double(), dim=-1), ids


def reference_gains(trial, chunks, slot):
    """Sums over train (V,) of log P(v | x, y) - log P(v | x) for "[MASK]" at the end of a chunk."""
    tokenizer, masked = trial.encoder.tokenizer, trial.arch.kind == "masked"
    gains, label_log_p = 0, 0.0
    for example in trial.encoder.task.train:
        word = ("bad", "great")[example.label]
        label = tokenizer.convert_tokens_to_ids(word)
        if masked:
            holes = [list(chunk) for chunk in chunks]
            holes[slot].append("[MASK]")
            p, ids = log_p(trial, text_of(trial, example, holes, word))
            with_label = p[ids.index(tokenizer.mask_token_id)]
            p, ids = log_p(trial, text_of(trial, example, holes, "[MASK]"))
            places = [i for i, token in enumerate(ids) if token == tokenizer.mask_token_id]
            gains = gains + with_label - p[places[0]]
            label_log_p += p[places[1], label].item()
        else:
            chunk = " ".join(chunks[slot])
            with_label, _ = log_p(trial, f"{example.fields['text']} {word} {chunk}")
            p, _ = log_p(trial, f"{example.fields['text']} {chunk}")
            gains = gains + with_label[-1] - p[-1]
            label_log_p += p[-1 - len(chunks[slot]), label].item()
    return gains, label_log_p


def reference_fitness(trial, chunks):
    """Accuracy, mean probability and loss of the label words, and sum of full log-probabilities."""
    tokenizer = trial.encoder.tokenizer
    rows, full = [], 0.0
    for example in trial.encoder.task.train:
        masked = trial.arch.kind == "masked"
        p, ids = log_p(trial, text_of(trial, example, chunks, "[MASK]" if masked else ""))
        answer = ids.index(tokenizer.mask_token_id) if masked else -1
        rows.append(p[answer, tokenizer.convert_tokens_to_ids(["bad", "great"])])
        full += rows[-1][example.label].item()
    labels = torch.tensor([example.label for example in trial.encoder.task.train])
    right = torch.stack(rows).softmax(dim=1)[torch.arange(len(labels)), labels]
    accuracy = (right > 0.5).double().mean().item()
    return accuracy, right.mean().item(), -right.log().mean().item(), full


def allowed(trial, token):
    word = trial.encoder.tokenizer.decode([token]).strip().lower()
    special = token in trial.encoder.tokenizer.all_special_ids
    labels = ("bad", "great")
    return not special and not any(
        label in word or label.startswith(word) or label.endswith(word) for label in labels
    )


@pytest.mark.parametrize(
    ("chunks", "slot"), [(((), ()), 0), (((), ()), 1), ((("w7",), ("the",)), 1)]
)
def test_a_hole_gets_the_token_that_tells_most_about_the_label_words(trial, chunks, slot):
    tokenizer = trial.encoder.tokenizer
    learner = GAP3(trial, popsize=4)
    holed = [tuple(tokenizer.convert_tokens_to_ids(chunk)) for chunk in map(list, chunks)]
    holed[slot] += (HOLE,)
    learner._waiting = [tuple(holed)] * 2
    gains, label_log_p = reference_gains(trial, chunks, slot)
    order = [token for token in gains.argsort(descending=True).tolist() if allowed(trial, token)]
    for nth in range(2):  # the second finds the best token taken
        loss = learner.step()
        individual = learner._done[nth]
        assert individual.chunks[slot][-1] == order[nth]
        filled = [tokenizer.convert_ids_to_tokens(list(chunk)) for chunk in individual.chunks]
        accuracy, fitness, own_loss, full = reference_fitness(trial, filled)
        assert individual.score == accuracy
        assert individual.fitness == pytest.approx(fitness, abs=1e-5)
        assert individual.loss == pytest.approx(own_loss, abs=1e-5)
        bias = full - label_log_p - gains[order[nth]].item()
        assert learner._found_bias[nth] == (order[nth], pytest.approx(bias, abs=1e-3))
    assert loss == learner.best.loss
    assert learner.evaluations == 2 + 2  # the hole was looked at once


def test_a_token_that_kept_less_than_it_promised_is_held_against_it(trial):
    learner = GAP3(trial, popsize=4)
    hole = ((HOLE,), ())
    potentials = learner._look_at(hole)
    _, first = learner._fill(hole, potentials)
    learner._seen.clear()
    learner._bias[first] = -1e6
    _, other = learner._fill(hole, potentials)
    assert other != first


def test_generations_and_what_they_cost(trial):
    learner = GAP3(trial, popsize=6, generations=3)
    losses = []
    while (loss := learner.step()) is not None:
        losses.append(loss)
    assert len(losses) == 4 * 6
    assert learner.generation == 3
    # One pass for each individual, and two for each hole of the first generation, of which there
    # are at most two, and at most as many as individuals in the later ones.
    assert 24 < learner.evaluations <= 24 + 2 * (2 + 3 * 6)
    assert len(learner._seen) == 24  # none was evaluated twice
    words = trial.encoder.tokenizer.convert_tokens_to_ids(["bad", "great"])
    assert not any(word in chunk for chunks in learner._seen for chunk in chunks for word in words)
    assert all(HOLE not in chunk for chunks in learner._seen for chunk in chunks)
    assert all(bias <= 0 for bias in learner._bias.values())
    accuracy, fitness, loss, _ = reference_fitness(
        trial,
        [trial.encoder.tokenizer.convert_ids_to_tokens(list(chunk)) for chunk in learner.chunks],
    )
    assert learner.best.rank == (accuracy, pytest.approx(fitness, abs=1e-5))
    assert losses[-1] == pytest.approx(loss, abs=1e-5)
    assert learner.parameters == sum(map(len, learner.chunks)) > 0


def test_the_best_ever_stays_among_the_parents(trial):
    learner = GAP3(trial, popsize=4, crossover=0.0, mutation=0.0)
    for _ in range(4):
        learner.step()
    learner._waiting.clear()
    best = replace(learner.best, chunks=((50,), (51,)), score=2.0)
    learner.best = best
    assert learner._breed()
    # Without crossover and mutation the children are the parents, and those seen are dropped.
    assert learner._waiting == [best.chunks]


def test_crossover_takes_each_chunk_from_one_parent_and_leaves_the_other(trial):
    learner = GAP3(trial, popsize=4)
    a, b = ((1,), (2, 3)), ((4,), ())
    children = {learner._cross(a, b) for _ in range(50)}
    assert children == {
        (a, b),
        (b, a),
        (((4,), (2, 3)), ((1,), ())),
        (((1,), ()), ((4,), (2, 3))),
    }


def test_a_hole_is_inserted_or_takes_the_place_of_a_token(trial):
    learner = GAP3(trial, popsize=4)
    found = {learner._with_hole(((8, 9), ())) for _ in range(200)}
    inserted = {(HOLE, 8, 9), (8, HOLE, 9), (8, 9, HOLE)}
    replaced = {(HOLE, 9), (8, HOLE)}
    assert found == {(chunk, ()) for chunk in inserted | replaced} | {((8, 9), (HOLE,))}
    full = (tuple(range(8, 8 + learner.prompts.most_tokens)), (7,))
    assert {sum(map(len, learner._with_hole(full))) for _ in range(50)} == {sum(map(len, full))}


def test_fit_restores_what_did_best_on_the_development_set(trial):
    trial.budget, trial.dev_every = 20, 5
    learner = GAP3(trial, popsize=4)
    fit(trial, learner)
    best = [score for score in trial.scores if score.best][-1]
    score = trial.score(trial.encoder.task.dev, learner.logits)
    assert (score.score, score.loss) == (best.score, pytest.approx(best.loss, abs=1e-6))
    chunks = learner.state()
    learner.restore(((), ()))
    assert learner.parameters == 0
    learner.restore(chunks)
    assert learner.chunks == chunks


def test_the_same_seed_gives_the_same_prompts(word_tokenizer, toy_task):
    def chunks(seed):
        learner = GAP3(make_trial("llama", word_tokenizer, toy_task, seed), popsize=4)
        for _ in range(12):
            learner.step()
        return learner._seen

    assert chunks(0) == chunks(0)
    assert chunks(0) != chunks(1)


def test_texts_are_cut_to_what_the_chunks_leave(trial):
    prompts = ChunkedPrompts(trial.encoder)
    example = Example({"text": "the film was dull and " * 30}, 0)
    chunks = ((40,) * 7, (50,) * 3 + (HOLE,))
    assert len(prompts.answering(example, chunks).ids) <= trial.encoder.max_length
    for labelled in (True, False):
        prompt, _ = prompts.filling(example, chunks, labelled=labelled)
        assert len(prompt.ids) <= trial.encoder.max_length


def test_pairs_have_chunks_as_in_the_public_templates(word_tokenizer):
    """None before a mask between two texts, one before everything else."""
    patterns = {"masked": "{text1} ? {mask} , {text2}", "causal": "{text1} ? {text2} Answer:"}
    example = Example({"text1": "the film", "text2": "a plot"}, 1)
    task = Task("pairs", patterns, ("bad", "great")).with_splits([example], [example], [])
    trial = make_trial("roberta", word_tokenizer, task)
    prompts, tokenizer = ChunkedPrompts(trial.encoder), trial.encoder.tokenizer
    assert prompts.slots == 2
    prompt = prompts.answering(example, ((30,), (40,)))
    w30, w40 = tokenizer.convert_ids_to_tokens([30, 40])
    assert tokenizer.decode(prompt.ids) == f"[CLS] {w30} the film [MASK] {w40} a plot [SEP]"
    assert prompt.answer == 4
    trial = make_trial("llama", word_tokenizer, task)
    prompts = ChunkedPrompts(trial.encoder)
    assert prompts.slots == 3
    prompt = prompts.answering(example, ((30,), (40,), (30,)))
    text = trial.encoder.tokenizer.decode(prompt.ids)
    assert text == f"[BOS] {w30} the film {w40} a plot {w30}"
    assert prompt.answer == len(prompt.ids) - 1


def test_a_task_with_one_chunk_mutates_always_and_never_crosses(word_tokenizer, toy_task):
    task = replace(few(toy_task), patterns={"masked": "{mask}"})
    trial = make_trial("roberta", word_tokenizer, task)
    learner = GAP3(trial, popsize=4)
    assert (learner.crossover, learner.mutation) == (0, 1)
    assert np.isfinite(learner.step())


def test_byte_level_tokens_follow_a_space(byte_tokenizer, toy_task):
    trial = make_trial("gpt2", byte_tokenizer, toy_task)
    prompts, tokenizer = ChunkedPrompts(trial.encoder), trial.encoder.tokenizer
    assert [tokenizer.decode([i]) for i in prompts.label_ids] == [" bad", " great"]
    example = Example({"text": "the film"}, 0)
    assert tokenizer.decode(prompts.answering(example, ((), ())).ids) == " the film"


def test_what_cannot_work_is_said_at_once(word_tokenizer, toy_task):
    trial = make_trial("llama", word_tokenizer, toy_task)
    for name, value in {"popsize": 3, "crossover": 1.5, "mutation": -0.1}.items():
        with pytest.raises(UserError, match=name):
            GAP3(trial, **{name: value})
    with pytest.raises(UserError, match="encoder-decoder"):
        GAP3(make_trial("bart", word_tokenizer, toy_task))
