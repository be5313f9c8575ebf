"""Candidates write what PEFT's models write, and `tune` raises scores of what is written."""

import json

import numpy as np
import peft
import pytest
import torch
from peft_reference import peft_model, set_factors
from tiny import LAYERS, build_model, kind_of, random_adapter, random_factors, random_prompts

from integrations import GenerationTask, Speedups, Task, TextExample, UserError, load_model, tune
from integrations.adapter import Adapter
from integrations.architectures import describe
from integrations.candidates import JointCandidates, LayerCandidates
from integrations.evaluators import make_encoder, make_evaluator
from integrations.generation import GenerationEvaluator
from integrations.memory import bytes_per_token
from integrations.text_scores import exact_match, rouge_l

# Among them: fused projections, few key heads, windows, alibi, encoders and decoders.
WRITERS = ["llama", "gpt2", "qwen2", "gemma2", "gemma3_text", "bloom", "t5", "bart"]
TEXTS = ("the film was very good", "a plot", "the cast is dull , very dull and poor", "w50 w60")
NEW_TOKENS = 6


def make_task(score=lambda texts, examples: [0.0] * len(texts), **settings):
    examples = [TextExample({"text": text}, "the film") for text in TEXTS]
    settings = {"max_new_tokens": NEW_TOKENS, "pattern": "{text} is"} | settings
    splits = {"train": examples, "dev": examples[:2], "test": examples[1:]}
    return GenerationTask(**{"name": "toy", "score": score} | splits | settings)


@pytest.fixture
def evaluator_of(word_tokenizer):
    def evaluator_of(arch, task=None, **settings):
        task = make_task() if task is None else task
        encoder = make_encoder(task, arch, word_tokenizer(arch.kind), None)
        return GenerationEvaluator(arch, encoder, task.train, **settings)

    return evaluator_of


@torch.no_grad()
def written(model, tokenizer, text):
    """What a model writes after one prompt, greedily."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    tokens = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )[0]
    seq2seq = model.config.is_encoder_decoder
    return tokenizer.decode(tokens[1 if seq2seq else ids.shape[1] :], skip_special_tokens=True)


# -- what candidates write -------------------------------------------------------------------------


@pytest.mark.parametrize("family", WRITERS)
def test_candidates_write_what_peft_writes_one_candidate_and_prompt_at_a_time(
    family, evaluator_of, word_tokenizer
):
    model = build_model(family)
    arch = describe(model, ("q", "v", "o"))
    adapter, tokenizer = random_adapter(arch, [0, 1, 3]), word_tokenizer(arch.kind)
    evaluator = evaluator_of(arch)
    tuned, told_apart = peft_model(model, adapter), set()
    for layer in (0, LAYERS // 2):
        candidates = random_factors(arch, layer, 2, seed=1)
        expected = []
        for p in range(2):
            set_factors(tuned, layer, {name: f[p : p + 1] for name, f in candidates.items()})
            expected.append([written(tuned, tokenizer, f"{text} is") for text in TEXTS])
        if adapter.factors[layer]:
            set_factors(tuned, layer, adapter.factors[layer])
        assert list(evaluator.texts(LayerCandidates(layer, candidates), adapter)) == expected
        told_apart.update(text for texts in expected for text in texts)
    assert len(told_apart) > 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
def test_candidates_of_several_layers_write_what_peft_writes(family, evaluator_of, word_tokenizer):
    model = build_model(family)
    arch = describe(model)
    adapter, tokenizer = random_adapter(arch, [0, 1, 3]), word_tokenizer(arch.kind)
    candidates = JointCandidates({i: random_factors(arch, i, 3, seed=1) for i in (1, 2)})
    tuned, expected = peft_model(model, adapter), []
    for p in range(3):
        for layer, factors in candidates.factors.items():
            set_factors(tuned, layer, {name: f[p : p + 1] for name, f in factors.items()})
        expected.append([written(tuned, tokenizer, f"{text} is") for text in TEXTS])
    evaluator = evaluator_of(arch, speedups=Speedups(blocks=2))
    assert list(evaluator.texts(candidates, adapter)) == expected
    assert len({text for texts in expected for text in texts}) > 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_blocks_and_padding_change_nothing(family, evaluator_of):
    arch = describe(build_model(family))
    candidates, adapter = random_factors(arch, 2, 5, seed=1), random_adapter(arch)
    expected = list(evaluator_of(arch).texts(LayerCandidates(2, candidates), adapter))
    for settings in (
        {"speedups": Speedups(blocks=2)},
        {"speedups": Speedups(no_padding=False, blocks=1)},
        {"memory_limit": 400_000},
    ):
        evaluator = evaluator_of(arch, **settings)
        assert list(evaluator.texts(LayerCandidates(2, candidates), adapter)) == expected


def test_a_block_leaves_something_for_each_worker(evaluator_of):
    arch = describe(build_model("llama"))
    evaluator = evaluator_of(arch)
    candidates = LayerCandidates(2, random_factors(arch, 2, 10))
    for count, workers, size in ((4, 4, 1), (10, 4, 3), (10, 1, 3)):
        evaluator.choose_block_size(candidates[:count], random_adapter(arch), workers)
        assert evaluator.pass_size == size  # the last are no more than before
    evaluator = evaluator_of(arch, speedups=Speedups(blocks=7))
    evaluator.choose_block_size(candidates, random_adapter(arch), 4)
    assert evaluator.pass_size == 7


def test_a_memory_limit_cuts_blocks_and_one_that_is_too_little_says_what_is_needed(evaluator_of):
    arch = describe(build_model("llama"))
    candidates = LayerCandidates(2, random_factors(arch, 2, 40))
    sizes = []
    for limit in (200_000, None):
        evaluator = evaluator_of(arch, memory_limit=limit)
        evaluator.choose_block_size(candidates, random_adapter(arch))
        sizes.append(evaluator.pass_size)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1]
    with pytest.raises(UserError, match=r"memory_limit of 0\.0 MB is too little: .* max_new_tok"):
        evaluator_of(arch, memory_limit=5_000)


def test_a_memory_limit_counts_what_is_written_to_short_prompts_beside_long_ones(evaluator_of):
    arch = describe(build_model("llama"))
    task = make_task(max_new_tokens=20)
    long = TextExample({"text": "the cast is " + "dull " * 35}, "the film")
    short = [TextExample({"text": "a"}, "the film")] * 40
    task = task.with_splits([long, *short], short, short)
    passes = []
    arch.layers[0].register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[:2]))
    for limit in (300_000, 1_000_000):
        passes.clear()
        evaluator = evaluator_of(arch, task, memory_limit=limit, speedups=Speedups(blocks=9))
        list(evaluator.texts(LayerCandidates(1, random_factors(arch, 1, 9)), Adapter(arch)))
        most = limit // (bytes_per_token(arch, [random_prompts("causal")[0]], all_logits=False))
        rows = [rows * (tokens + 20) for rows, tokens in passes if tokens > 1]
        assert max(rows) <= most


def test_the_model_is_as_before_and_sampling_settings_have_no_effect(evaluator_of):
    model = build_model("llama")
    arch = describe(model)
    candidates = LayerCandidates(1, random_factors(arch, 1, 2))
    expected = list(evaluator_of(arch).texts(candidates, Adapter(arch)))
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=3, num_beams=2)
    ids = torch.arange(10, 30)[None]
    before = model(ids).logits
    found = list(evaluator_of(arch).texts(candidates, Adapter(arch)))
    assert found == expected
    assert torch.equal(model(ids).logits, before)


def test_an_answer_ends_before_the_end_of_text_and_the_stop_texts(evaluator_of):
    model = build_model("llama")
    arch = describe(model)
    whole = evaluator_of(arch).answers(Adapter(arch))
    words = [text.split() for text in whole]
    stop = words[0][2]
    expected = [text.partition(stop)[0] for text in whole]
    stopped = evaluator_of(arch, make_task(stop=[stop])).answers(Adapter(arch))
    assert stopped == expected != whole
    model.generation_config.eos_token_id = [6, evaluator_of(arch).encoder._id(stop)]
    ended = evaluator_of(arch).answers(Adapter(arch))
    assert [text.strip() for text in ended] == [text.strip() for text in expected]


def test_stop_texts_end_generation_early(evaluator_of):
    arch = describe(build_model("llama"))
    steps = []
    arch.head.register_forward_hook(lambda *_: steps.append(1))
    evaluator_of(arch, make_task(stop=["w", "t", "a", "e", "i", ".", ","])).answers(Adapter(arch))
    stopped = len(steps)
    steps.clear()
    evaluator_of(arch).answers(Adapter(arch))
    assert stopped < len(steps)


# -- scores ----------------------------------------------------------------------------------------


def test_losses_are_minus_the_mean_score_of_each_candidates_texts(evaluator_of):
    seen = []

    def length(texts, examples):
        seen.append([example.fields["text"] for example in examples])
        return [len(text) for text in texts]

    arch = describe(build_model("qwen2"))
    evaluator = evaluator_of(arch, make_task(length))
    candidates, adapter = random_factors(arch, 1, 4), random_adapter(arch, [0])
    texts = list(evaluator.texts(LayerCandidates(1, candidates), adapter))
    losses = evaluator.evaluate(1, candidates, adapter)
    assert losses == pytest.approx([-np.mean([*map(len, mine)]) for mine in texts])
    assert losses.dtype == np.float64
    assert seen == 4 * [list(TEXTS)]
    mine = evaluator.answers(adapter)
    assert evaluator.loss_in_place(adapter) == pytest.approx(-np.mean([*map(len, mine)]))
    score = evaluator.score(adapter)
    assert (score.score, score.examples) == (-score.loss, len(TEXTS))


def test_exact_match_forgives_space_around_the_answer_only():
    examples = [TextExample({}, " Paris ")] * 4
    assert exact_match(["Paris", " Paris\n", "paris", "Paris."], examples) == [1, 1, 0, 0]


def test_rouge_l_is_that_of_the_longest_common_subsequence():
    pytest.importorskip("rouge_score")
    examples = [TextExample({}, "the cat sat on the mat")] * 3
    scores = rouge_l(["the cat on a mat", "dog", "the cat sat on the mat"], examples)
    # "the cat on mat": 4 of 5 words and 4 of 6.
    assert scores == pytest.approx([2 * 4 / (5 + 6), 0, 1])
    assert make_task("rougeL").metric == "rougeL"


def test_rouge_l_says_what_it_cannot_read():
    task = make_task("rougeL")
    unread = [*task.test, TextExample({"text": "a"}, "Привет мир")]
    with pytest.raises(UserError, match=r"digits only.*reference of test example 3 .*'Привет мир'"):
        task.with_splits(task.train, task.dev, unread)


def test_rouge_l_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"pip install 'dfo-lora\[rouge\]'"):
        make_task("rougeL")


# -- tune ------------------------------------------------------------------------------------------


def share_of_w(texts, examples):
    """Share of words that begin with w and end in an even digit."""
    good = [[w[0] == "w" and w[-1] in "02468" for w in text.split()] or [False] for text in texts]
    return [float(np.mean(words)) for words in good]


@pytest.fixture
def run(word_tokenizer):
    def run(family="llama", score=share_of_w, **arguments):
        settings = {"budget": 40, "dim": 40, "dev_every": 20, "layers": "all"} | arguments
        model = settings.pop("model", None) or build_model(family, num_hidden_layers=2)
        task = settings.pop("task", None) or make_task(score)
        return tune(model, task, tokenizer=word_tokenizer(kind_of(family)), **settings)

    return run


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_tune_raises_the_score(family, run, tmp_path):
    result = run(family)
    first, last = result.history.scores[0], result.history.scores[-1]
    assert last.train_loss < first.train_loss
    assert result.settings["loss"] == "score"
    frozen, tuned = result.test(frozen=True), result.test()
    assert (frozen.examples, tuned.loss) == (3, -tuned.score)
    train = result.answers(result.encoder.task.train, frozen=True)
    assert -np.mean(share_of_w(train, [])) == pytest.approx(first.train_loss)
    result.save(tmp_path)
    assert json.loads((tmp_path / "dfo_lora.json").read_text())["settings"]["loss"] == "score"
    result.plot(tmp_path / "curve.svg")


def test_a_saved_adapter_writes_the_same_in_peft(run, tmp_path):
    model = build_model("llama", num_hidden_layers=2)
    result = run(model=model, targets=("q", "v"))
    result.save(tmp_path)
    tokenizer = result.encoder.tokenizer
    tuned = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    expected = [written(tuned, tokenizer, f"{text} is") for text in TEXTS[1:]]
    tuned.unload()
    assert result.answers() == expected


def test_an_interrupted_run_goes_on_to_the_same_end(run, tmp_path):
    whole = run()
    run(checkpoint=tmp_path, callback=lambda progress: progress.visit.number == 2)
    resumed = run(checkpoint=tmp_path)
    assert resumed.history.visits == whole.history.visits
    with pytest.raises(UserError, match=r"what differs: .*max_new_tokens \(there 6, here 5\)"):
        run(checkpoint=tmp_path, task=make_task(share_of_w, max_new_tokens=5))


def test_tokens_of_a_chat_are_written_in_the_pattern(word_tokenizer):
    arch = describe(build_model("llama"))
    encoder = make_encoder(make_task(pattern="{text} [SEP] is"), arch, word_tokenizer("causal"), 9)
    assert encoder.encode(make_task().train)[1].ids == tuple(
        encoder._id(word) for word in ("[BOS]", "a", "plot", "[SEP]", "is")
    )
    assert max(len(prompt.ids) for prompt in encoder.encode(make_task().train)) <= 9


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of 1 or more; got 0"),
        ({"max_new_tokens": 2.5}, "whole number of 1 or more; got 2.5"),
        ({"stop": "\n"}, "stop must be a list of texts"),
        ({"stop": ["a", ""]}, "stop must be a list of texts"),
        ({"score": "rogue"}, "unknown score 'rogue'.*Known: exact, rougeL"),
        ({"score": "exact", "dev": [TextExample({"text": "a"})]}, "dev example 0 has no reference"),
        ({"test": [TextExample({"txt": "a"}, "b")]}, r"test example 0 has no field 'text'"),
        ({"pattern": "{0} is"}, r"\{0\} is no field"),
    ],
)
def test_tasks_that_cannot_work(settings, message):
    with pytest.raises(UserError, match=message) as raised:
        make_task(**settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        ([1.0], r"shape \(1,\)"),
        (0.5, r"shape \(\)"),
        ([[1.0]] * 4, r"shape \(4, 1\)"),
        ("ab", "'a"),
    ],
)
def test_a_score_of_another_shape(run, returned, got):
    with pytest.raises(UserError, match=f"must return one number for each of the 4 texts; .*{got}"):
        run(score=lambda texts, examples: returned)


@pytest.mark.parametrize("loss", ["ce", lambda logits, labels: 0])
def test_losses_of_label_words(run, loss):
    with pytest.raises(UserError, match="the task's only loss is 'score'"):
        run(loss=loss)


def test_a_masked_model_writes_no_text(run):
    with pytest.raises(UserError, match="needs a model that writes text"):
        run("bert")


@pytest.mark.parametrize("settings", [{"max_new_tokens": 64}, {"max_new_tokens": 70}])
def test_no_room_for_a_prompt(run, settings):
    with pytest.raises(UserError, match=r"leave no room for a prompt.*lower max_new_tokens"):
        run(task=make_task(**settings))
    with pytest.raises(
        UserError, match=r"tokens that the model has positions for beside \d+ new ones; got 60"
    ):
        run(max_length=60)


def test_a_task_without_examples(run):
    with pytest.raises(UserError, match="has no train examples"):
        run(task=make_task().with_splits([], [], []))


def test_workers_generate_what_one_process_does(run):
    """With a score that they cannot import."""

    def own(texts, examples):
        return share_of_w(texts, examples)

    alone, together = (run(score=own, workers=workers) for workers in (None, 2))
    assert [v.loss for v in together.history.visits] == [v.loss for v in alone.history.visits]
    assert alone.history.visits[-1].loss < alone.history.scores[0].train_loss


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_named(run, score):
    def own(texts, examples):
        return [score] * len(texts)

    with pytest.raises(UserError, match=r"training loss is .*; let '.*own' return finite numbers"):
        run(score=own)


def test_what_is_no_task(run):
    with pytest.raises(UserError, match="GenerationTask or a ContinuationTask; got dict"):
        run(task={"name": "toy"})


def test_label_words_give_no_answers(toy_task, word_tokenizer):
    assert isinstance(toy_task, Task)
    model = build_model("llama", num_hidden_layers=2)
    result = tune(model, toy_task, tokenizer=word_tokenizer("causal"), budget=5, dim=8)
    with pytest.raises(UserError, match="only a GenerationTask is answered by text"):
        result.answers()


@pytest.mark.slow
def test_smollm2_answers_in_words_and_generate_says_the_same():
    model, tokenizer = load_model("smollm2-135m")
    questions = ("What is the capital of France?", "What is the opposite of hot?")
    pattern = "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    examples = [TextExample({"text": text}) for text in questions]
    task = make_task(pattern=pattern, train=examples, dev=examples, test=examples)
    arch = describe(model)
    evaluator = make_evaluator(make_encoder(task, arch, tokenizer, None), arch, examples, None)
    expected = [written(model, tokenizer, pattern.format(text=text)) for text in questions]
    assert evaluator.answers(Adapter(arch)) == expected
