"""Prompts: where the answer goes, which tokens label words are, what is cut."""

import pytest
import torch
from tiny import MASK, POSITIONS, SEQ2SEQ, build_model
from transformers import T5Tokenizer

from integrations import Example, Task, UserError
from integrations.architectures import FAMILIES
from integrations.patterns import CHARACTERS_PER_TOKEN
from integrations.prompts import Encoder, longest_prompt


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


@pytest.mark.parametrize("kind", ["masked", "seq2seq"])
@pytest.mark.parametrize("space", ["\n", "  ", " \n "])
def test_white_space_that_the_mask_takes_along_is_no_part_of_a_word(byte_tokenizer, kind, space):
    encoder = Encoder(
        task_of(masked=f"{{text}} It was{space}{{mask}} ."), byte_tokenizer(kind), kind
    )
    assert tokens(encoder, encoder.label_ids) == ["Ġbad", "Ġgreat"]
    assert [len(word) for word in encoder.words] == [1, 1]


@pytest.mark.parametrize("kind", ["masked", "seq2seq"])
@pytest.mark.parametrize("after", [".", " .", ", the film"])
def test_words_are_those_without_what_follows(byte_tokenizer, kind, after):
    encoder = Encoder(
        task_of(masked=f"{{text}} It was {{mask}}{after}"), byte_tokenizer(kind), kind
    )
    assert tokens(encoder, [token for word in encoder.words for token in word]) == [
        "Ġbad",
        "Ġgreat",
    ]


def test_an_answer_may_come_first(byte_tokenizer, word_tokenizer, t5_tokenizer):
    task = task_of(masked="{mask} film : {text}")
    encoder = Encoder(task, byte_tokenizer("masked"), "masked")
    assert tokens(encoder, encoder.label_ids) == ["bad", "great"]  # and not "Ġbad"
    encoder = Encoder(task, word_tokenizer("seq2seq"), "seq2seq")
    assert tokens(encoder, encoder.label_ids) == ["bad", "great"]
    assert tokens(encoder, encode(encoder, text="the").decoder_ids) == ["[SEP]", "[CLS]"]
    encoder = Encoder(task, t5_tokenizer, "seq2seq")
    assert tokens(encoder, encoder.label_ids) == ["▁bad", "▁great"]


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


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_two_long_fields_are_cut_to_the_same_length(word_tokenizer, kind):
    patterns = ("{text1} . {text2} It was", "{text1} . {mask} , {text2}")
    encoder = Encoder(task_of(*patterns), word_tokenizer(kind), kind, max_length=25)
    prompt = encode(encoder, text1="good " * 60, text2="poor " * 40)
    found = tokens(encoder, prompt.ids)
    assert len(found) <= 25
    assert found[prompt.answer] == {"causal": "was", "masked": "[MASK]"}[kind]
    assert min(found.count("good"), found.count("poor")) >= 8
    assert abs(found.count("good") - found.count("poor")) <= 1


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_as_much_is_kept_as_fits(word_tokenizer, kind):
    """Of words of one character, what a character more would not fit."""
    for length in range(7, 20):
        encoder = Encoder(task_of(), word_tokenizer(kind), kind, max_length=length)
        assert len(encode(encoder, text="a " * 50).ids) == length


def test_a_book_takes_no_longer_than_a_page(word_tokenizer):
    encoder = Encoder(task_of(), word_tokenizer("causal"), "causal", max_length=20)
    seen = []

    class Counting:
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def __call__(self, text):
            seen.append(len(text))
            return self.tokenizer(text)

    encoder.tokenizer = Counting(encoder.tokenizer)
    prompt = encode(encoder, text="good film " * 100_000)
    assert tokens(encoder, prompt.ids)[-2:] == ["It", "was"]
    assert len(prompt.ids) == 20
    assert max(seen) <= 20 * CHARACTERS_PER_TOKEN + len(" It was")
    assert len(seen) <= 15


def test_short_texts_are_not_cut(word_tokenizer):
    encoder = Encoder(task_of(), word_tokenizer("causal"), "causal", max_length=7)
    assert len(encode(encoder, text="a b c d").ids) == 7


def test_a_pattern_that_is_too_long_itself_is_named(word_tokenizer):
    encoder = Encoder(task_of(), word_tokenizer("causal"), "causal", max_length=2)
    with pytest.raises(UserError, match=r"'{text} It was' leaves no room for text in 2 tokens"):
        encode(encoder, text="good film")


@pytest.mark.parametrize(
    ("family", "positions", "longest"),
    [("llama", 64, 64), ("llama", 4096, 512), ("bert", 512, 512), ("roberta", 514, 512)],
)
def test_prompts_fit_the_models_positions(family, positions, longest):
    model = build_model(family, max_position_embeddings=positions)
    assert longest_prompt(model) == longest
    reserved = {"roberta": 2}.get(family, 0)
    assert longest_prompt(model, max_length=positions - reserved) == positions - reserved
    if family == "llama":  # rotates, by any angle
        assert longest_prompt(model, max_length=positions + 1) == positions + 1
        return
    with pytest.raises(UserError, match=f"{positions - reserved} tokens.*got {positions + 1}"):
        longest_prompt(model, max_length=positions + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_longer_prompt_than_is_allowed_would_not_run(family):
    model = build_model(family)
    ids = torch.full((1, POSITIONS + 1), 20)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if family in SEQ2SEQ else {})}
    try:
        longest_prompt(model, max_length=POSITIONS + 1)
    except UserError:
        with pytest.raises((IndexError, RuntimeError, ValueError)), torch.no_grad():
            model(**inputs)
    else:
        with torch.no_grad():
            assert model(**inputs).logits.isfinite().all()


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
