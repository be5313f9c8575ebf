"""Prompts: where the answer goes, which tokens label words are, what is cut, what is padded."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MASK, PAD, POSITIONS, SEQ2SEQ, build_model
from transformers import T5Tokenizer

from integrations import Example, Task, UserError
from integrations.architectures import FAMILIES
from integrations.prompts import (
    BATCH_OVERHEAD_TOKENS,
    Encoder,
    Prompt,
    group_by_length,
    longest_prompt,
    make_batches,
)

CPU = torch.device("cpu")


def task_of(causal="{text} It was", masked="{text} It was {mask} .", words=("bad", "great")):
    return Task("toy", {"causal": causal, "masked": masked, "seq2seq": masked}, words)


def encode(encoder, label=0, **fields):
    (prompt,) = encoder.encode([Example(fields, label)])
    return prompt


def tokens(encoder, ids):
    return encoder.tokenizer.convert_ids_to_tokens(list(ids))


# -- where the answer goes -------------------------------------------------------------------------


def test_causal_prompts_end_where_the_answer_is_predicted(word_tokenizer):
    encoder = Encoder(task_of(), word_tokenizer("causal"), "causal")
    prompt = encode(encoder, text="the film", label=1)
    assert tokens(encoder, prompt.ids) == ["[BOS]", "the", "film", "It", "was"]
    assert (prompt.answer, prompt.label) == (4, 1)
    assert tokens(encoder, encoder.label_ids) == ["bad", "great"]


def test_a_closing_token_does_not_stand_between_prompt_and_answer(word_tokenizer):
    encoder = Encoder(task_of(), word_tokenizer("causal", closing="[EOS]"), "causal")
    prompt = encode(encoder, text="the film")
    assert tokens(encoder, prompt.ids) == ["[BOS]", "the", "film", "It", "was"]
    assert tokens(encoder, encoder.label_ids) == ["bad", "great"]


@pytest.mark.parametrize("pattern", ["{text} It was {mask} .", "{mask} News {text} ."])
def test_masked_prompts_are_answered_at_the_mask(word_tokenizer, pattern):
    encoder = Encoder(task_of(masked=pattern), word_tokenizer("masked"), "masked")
    for text in ("film", "the very good film"):
        prompt = encode(encoder, text=text)
        assert tokens(encoder, prompt.ids)[prompt.answer] == "[MASK]"
        assert tokens(encoder, prompt.ids).count("[MASK]") == 1
        assert tokens(encoder, prompt.ids)[:: len(prompt.ids) - 1] == ["[CLS]", "[SEP]"]
    assert tokens(encoder, encoder.label_ids) == ["bad", "great"]


@pytest.fixture(scope="module")
def t5_tokenizer():
    """T5's own class, with a vocabulary of its own."""
    words = ["bad", "great", "the", "film", "was", "It", "."]
    vocabulary = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>", "▁")]
    return T5Tokenizer(vocab=[*vocabulary, *((f"▁{word}", -1.0) for word in words)])


def test_t5_is_asked_as_in_its_pretraining(t5_tokenizer):
    """Sentinels stand for spans of the text; the decoder says a sentinel, then what it is for."""
    encoder = Encoder(task_of(), t5_tokenizer, "seq2seq")
    prompt = encode(encoder, text="the <extra_id_0> film")
    words = ["▁the", "▁film", "▁It", "▁was", "<extra_id_0>", "▁.", "</s>"]
    assert tokens(encoder, prompt.ids) == words
    assert tokens(encoder, prompt.decoder_ids) == ["<pad>", "<extra_id_0>"]
    assert prompt.answer == 1
    said = t5_tokenizer("<extra_id_0> great")["input_ids"]
    assert encoder.label_ids[1] == said[1]
    model = build_model("t5", pad_token_id=0, decoder_start_token_id=0)  # as T5's are
    shifted = model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([said]))
    assert shifted[0, :2].tolist() == list(prompt.decoder_ids)


def test_bart_is_asked_as_in_its_pretraining(word_tokenizer):
    """A decoder that says the whole text says the label word where the encoder found the mask."""
    encoder = Encoder(task_of(), word_tokenizer("seq2seq"), "seq2seq")
    prompt = encode(encoder, text="the film")
    assert tokens(encoder, prompt.ids) == [
        "[CLS]",
        "the",
        "film",
        "It",
        "was",
        "[MASK]",
        ".",
        "[SEP]",
    ]
    assert tokens(encoder, prompt.decoder_ids) == ["[SEP]", "[CLS]", "the", "film", "It", "was"]
    assert tokens(encoder, encoder.label_ids) == ["bad", "great"]
    # As the model itself shifts a text to the right that its decoder is to say.
    model = build_model("bart", decoder_start_token_id=encoder.tokenizer.eos_token_id)
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        own = model(input_ids=ids).logits[0, prompt.ids.index(MASK)]
        decoder_ids = torch.tensor([prompt.decoder_ids])
        ours = model(input_ids=ids, decoder_input_ids=decoder_ids).logits[0, prompt.answer]
    torch.testing.assert_close(own, ours)


def test_a_decoder_needs_something_to_put_in_the_place_of_the_answer(word_tokenizer):
    with pytest.raises(
        UserError, match="asks a seq2seq model, but the tokenizer has no mask token"
    ):
        Encoder(task_of(), word_tokenizer("causal"), "seq2seq")
    with pytest.raises(UserError, match="has no closing token"):
        Encoder(task_of(), word_tokenizer("masked"), "seq2seq")


def test_braces_in_a_text_are_text(word_tokenizer):
    encoder = Encoder(task_of(), word_tokenizer("causal"), "causal")
    assert encode(encoder, text="{mask} {} {text}").ids[-1] == encode(encoder, text="a").ids[-1]


def test_a_mask_in_a_text_is_not_the_answer(word_tokenizer):
    encoder = Encoder(task_of(), word_tokenizer("masked"), "masked")
    prompt = encode(encoder, text="the [MASK] was good")
    assert tokens(encoder, prompt.ids)[prompt.answer :] == ["[MASK]", ".", "[SEP]"]


# -- label words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "pattern", "expected"),
    [
        ("causal", "{text} It was", ["Ġbad", "Ġgreat"]),
        ("masked", "{text} It was {mask} .", ["Ġbad", "Ġgreat"]),
        ("masked", "{mask} story {text}", ["bad", "great"]),
    ],
)
def test_label_words_are_the_tokens_of_their_context(byte_tokenizer, kind, pattern, expected):
    encoder = Encoder(task_of(**{kind: pattern}), byte_tokenizer(kind), kind)
    assert tokens(encoder, encoder.label_ids) == expected


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_label_word_follows_the_prompt_as_in_running_text(byte_tokenizer, kind):
    """Prompt, label token and what comes after are together the tokens of the whole sentence."""
    tokenizer = byte_tokenizer(kind)
    encoder = Encoder(task_of(), tokenizer, kind)
    prompt = encode(encoder, text="the very lovely film")
    for word, label_id in zip(("bad", "great"), encoder.label_ids, strict=True):
        sentence = f"the very lovely film It was {word}" + (" ." if kind == "masked" else "")
        ids = list(prompt.ids)
        if kind == "masked":
            ids[prompt.answer] = label_id
        else:
            ids.append(label_id)
        assert ids == tokenizer(sentence)["input_ids"]


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_words_of_several_tokens_stand_for_their_first(byte_tokenizer, kind):
    encoder = Encoder(task_of(words=("badly", "greatest")), byte_tokenizer(kind), kind)
    assert tokens(encoder, encoder.label_ids) == ["Ġbad", "Ġgreat"]


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_colliding_label_words_are_named(byte_tokenizer, kind):
    with pytest.raises(UserError, match="'greatest' and 'greatness' begin with the same token"):
        Encoder(task_of(words=("greatest", "greatness")), byte_tokenizer(kind), kind)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_an_unknown_label_word_is_named(word_tokenizer, kind):
    with pytest.raises(UserError, match="label word 'splendid' is unknown to the tokenizer"):
        Encoder(task_of(words=("bad", "splendid")), word_tokenizer(kind), kind)


def test_a_label_word_that_merges_with_the_pattern_is_named(byte_tokenizer):
    pattern = "{text} gre{mask}"
    with pytest.raises(UserError, match="label word 'at' merges with the text before it"):
        Encoder(task_of(masked=pattern, words=("at", "ll")), byte_tokenizer("masked"), "masked")


def test_a_masked_model_needs_a_mask_token(word_tokenizer):
    with pytest.raises(UserError, match=r"task 'toy' .* tokenizer has no mask token"):
        Encoder(task_of(), word_tokenizer("causal"), "masked")


def test_a_task_without_a_pattern_for_the_models_kind(word_tokenizer):
    task = Task("toy", {"causal": "{text} It was"}, ("bad", "great"))
    with pytest.raises(UserError, match="'toy' has no pattern for masked models, only for causal"):
        Encoder(task, word_tokenizer("masked"), "masked")


# -- long texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [7, 8, 15, 30])
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_long_texts_lose_their_end_and_patterns_nothing(word_tokenizer, kind, length):
    encoder = Encoder(task_of(), word_tokenizer(kind), kind, max_length=length)
    text = " ".join(["good", "poor"] * 20)
    prompt = encode(encoder, text=text)
    found = tokens(encoder, prompt.ids)
    assert len(found) <= length
    pattern = {"causal": ["It", "was"], "masked": ["It", "was", "[MASK]", ".", "[SEP]"]}[kind]
    assert found[-len(pattern) :] == pattern
    assert found[prompt.answer] == ("was" if kind == "causal" else "[MASK]")
    kept = [token for token in found[1 : -len(pattern)] if token != "[UNK]"]  # half a word
    assert kept == text.split()[: len(kept)]
    assert len(kept) >= (length - len(pattern)) // 2


def test_the_longest_of_several_fields_is_cut(word_tokenizer):
    pattern = "{text1} . {text2} It was"
    encoder = Encoder(task_of(pattern, "{mask}"), word_tokenizer("causal"), "causal", max_length=12)
    prompt = encode(encoder, text1="good poor", text2="film " * 30)
    assert tokens(encoder, prompt.ids)[:5] == ["[BOS]", "good", "poor", ".", "film"]
    assert tokens(encoder, prompt.ids)[-2:] == ["It", "was"]
    assert 9 <= len(prompt.ids) <= 12


def test_short_texts_are_not_cut(word_tokenizer):
    encoder = Encoder(task_of(), word_tokenizer("causal"), "causal", max_length=7)
    assert len(encode(encoder, text="a b c d").ids) == 7


def test_a_pattern_that_is_too_long_itself_is_named(word_tokenizer):
    encoder = Encoder(task_of(), word_tokenizer("causal"), "causal", max_length=2)
    with pytest.raises(UserError, match=r"'{text} It was' alone is longer than 2 tokens"):
        encode(encoder, text="good film")


@pytest.mark.parametrize(
    ("family", "positions", "longest"),
    [("llama", 64, 64), ("llama", 4096, 512), ("bert", 512, 512), ("roberta", 514, 512)],
)
def test_prompts_fit_the_models_positions(family, positions, longest):
    model = build_model(family, max_position_embeddings=positions)
    assert longest_prompt(model) == longest


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_prompt_runs(family):
    """Tables of positions have rows for it; without a table there is no limit but ours."""
    model = build_model(family)
    length = longest_prompt(model)
    reserved = {"roberta": 2}.get(family, 0)
    assert length == (512 if family in ("bloom", "t5") else POSITIONS - reserved)
    ids = torch.full((1, length), 20)
    with torch.no_grad():
        outputs = model(input_ids=ids, **({"decoder_input_ids": ids} if family in SEQ2SEQ else {}))
    assert outputs.logits.isfinite().all()


# -- batches ---------------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=9)


def cost(groups, lengths):
    padded = sum(len(group) * max(lengths[i] for i in group) for group in groups)
    return padded + BATCH_OVERHEAD_TOKENS * len(groups)


@given(LENGTHS, st.integers(1, 400))
@settings(deadline=None, derandomize=True)
def test_groups_are_a_partition_within_the_limit(lengths, max_tokens):
    groups = group_by_length(lengths, max_tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        tokens = len(group) * max(lengths[i] for i in group)
        assert tokens <= max_tokens or len(group) == 1


@given(LENGTHS, st.integers(1, 400))
@settings(deadline=None, derandomize=True)
def test_no_cut_of_the_sorted_prompts_is_cheaper(lengths, max_tokens):
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    best = float("inf")
    for cuts in product([False, True], repeat=len(lengths) - 1):
        groups = [order[:1]]
        for i, cut in zip(order[1:], cuts, strict=True):
            if cut:
                groups.append([i])
            else:
                groups[-1].append(i)
        sizes = [(len(g) * max(lengths[i] for i in g), len(g)) for g in groups]
        if all(tokens <= max_tokens or n == 1 for tokens, n in sizes):
            best = min(best, cost(groups, lengths))
    assert cost(group_by_length(lengths, max_tokens), lengths) == best


def prompts_of(*lengths):
    return [
        Prompt(tuple(range(10, 10 + length)), answer=length - 1, label=i)
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_prompts_are_padded_on_the_right(kind, grouped):
    prompts = prompts_of(3, 90, 5, 4, 88)
    batches = make_batches(prompts, PAD, kind, CPU, grouped=grouped)
    assert len(batches) == (2 if grouped else 1)
    seen = []
    for batch in batches:
        assert len(batch) == len(batch.rows)
        for n, row in enumerate(batch.rows.tolist()):
            length = len(prompts[row].ids)
            assert tuple(batch.ids[n, :length].tolist()) == prompts[row].ids
            assert (batch.ids[n, length:] == PAD).all()
            assert batch.lengths[n] == length
            assert (batch.answers[n], batch.labels[n]) == (prompts[row].answer, row)
            if kind == "masked":
                assert batch.mask[n].tolist() == [1] * length + [0] * (len(batch.mask[n]) - length)
            seen.append(row)
    assert sorted(seen) == list(range(5))


def test_decoder_inputs_are_padded_on_the_right_too():
    prompts = [
        replace(prompt, decoder_ids=(PAD, *prompt.ids[:n]), answer=n)
        for n, prompt in enumerate(prompts_of(3, 5, 4))
    ]
    (batch,) = make_batches(prompts, PAD, "seq2seq", CPU)
    assert batch.decoder_ids.shape == (3, 3)
    inputs = batch.inputs(copies=2)
    for row, n in enumerate(batch.answers.repeat(2).tolist()):
        ids = [PAD, *prompts[n].ids[:n]]
        assert inputs["decoder_input_ids"][row].tolist() == ids + [PAD] * (3 - len(ids))
        assert tuple(inputs["input_ids"][row].tolist())[: len(prompts[n].ids)] == prompts[n].ids
        assert inputs["attention_mask"][row].sum() == len(prompts[n].ids)


def test_a_mask_is_there_only_where_it_changes_anything():
    """A causal answer attends to nothing after it; prompts of one length have no padding."""
    (mixed,) = make_batches(prompts_of(3, 4), PAD, "masked", CPU)
    (equal,) = make_batches(prompts_of(4, 4), PAD, "masked", CPU)
    (causal,) = make_batches(prompts_of(3, 4), PAD, "causal", CPU)
    assert mixed.mask is not None
    assert equal.mask is None
    assert causal.mask is None


@pytest.mark.parametrize("grouped", [True, False])
def test_batches_hold_so_many_tokens_at_most(grouped):
    batches = make_batches(
        prompts_of(*[10] * 7), PAD, "causal", CPU, grouped=grouped, max_tokens=30
    )
    assert [len(batch) for batch in batches] in ([3, 3, 1], [1, 3, 3])
