"""Tasks from local files and from the Hub, and what is said about files that don't fit."""

import csv
import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from integrations import Example, Task, UserError, load_task
from integrations.tasks import TASKS

SHARED = Path(__file__).parents[3] / "shared" / "data"


def rows_of(prefix, count, labels=(0, 1), column="text"):
    return [{column: f"{prefix} {i}", "label": labels[i % len(labels)]} for i in range(count)]


def write(folder, suffix=".jsonl", **splits):
    """Write splits as JSON lines or CSV; strings as they are."""
    for name, rows in splits.items():
        path = folder / f"{name}{suffix}"
        if isinstance(rows, str):
            path.write_text(rows)
        elif suffix == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0].keys())
                writer.writeheader()
                writer.writerows(rows)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def texts(examples):
    return [example.fields["text"] for example in examples]


# -- local files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_folder_of_files(tmp_path, suffix):
    write(tmp_path, suffix, train=rows_of("a", 8), dev=rows_of("b", 8), test=rows_of("c", 3))
    task = load_task("sst2", tmp_path, shots=4)
    assert sorted(texts(task.train)) == [f"a {i}" for i in range(8)]
    assert sorted(texts(task.dev)) == [f"b {i}" for i in range(8)]
    assert task.test == tuple(Example({"text": f"c {i}"}, i % 2) for i in range(3))
    assert task.label_words == ("bad", "great")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_columns_and_labels_by_other_names(tmp_path, suffix):
    rows = [{"sentence": f"s {i}", "sentiment": ("great", 0)[i % 2], "id": i} for i in range(8)]
    write(tmp_path, suffix, train=rows, test=rows)
    columns = {"text": "sentence", "label": "sentiment"}
    task = load_task("sst2", tmp_path, shots=2, columns=columns)
    assert [example.label for example in task.test] == [1, 0] * 4
    assert texts(task.test) == [f"s {i}" for i in range(8)]


def test_texts_keep_commas_quotes_and_line_ends(tmp_path):
    rows = [{"text": 'so "good",\nso {mask}', "label": i % 2} for i in range(4)]
    for suffix in (".jsonl", ".csv"):
        write(tmp_path, suffix, train=rows, test=rows)
        task = load_task("sst2", tmp_path, shots=1)
        assert set(texts(task.test)) == {'so "good",\nso {mask}'}


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    """Spreadsheets write one."""
    text = "\ufefftext,label\n" + "".join(f"t {i},{i % 2}\n" for i in range(4))
    write(tmp_path, ".csv", train=text, test=text)
    assert len(load_task("sst2", tmp_path, shots=1).test) == 4


def test_other_label_words(tmp_path):
    rows = rows_of("a", 8, labels=("awful", 1))
    write(tmp_path, train=rows, test=rows)
    task = load_task("sst2", tmp_path, shots=2, label_words=["awful", "fine"])
    assert task.label_words == ("awful", "fine")
    assert Counter(example.label for example in task.train) == {0: 2, 1: 2}


def test_a_limit_on_the_test_set_takes_the_first(tmp_path):
    write(tmp_path, train=rows_of("a", 8), test=rows_of("c", 9))
    limited = load_task("sst2", tmp_path, shots=2, test_limit=4).test
    assert texts(limited) == ["c 0", "c 1", "c 2", "c 3"]


# -- few-shot splits -------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path):
    return write(tmp_path, train_pool=rows_of("a", 60), test=rows_of("c", 3))


def test_train_and_dev_are_disjoint_and_have_k_examples_a_class(pool):
    task = load_task("sst2", pool, shots=7)
    for split in (task.train, task.dev):
        assert Counter(example.label for example in split) == {0: 7, 1: 7}
    assert len({*texts(task.train), *texts(task.dev)}) == 28


def test_the_seed_draws_the_splits(pool):
    first, again, other = (load_task("sst2", pool, shots=7, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert set(texts(first.train)) != set(texts(other.train))
    assert set(texts(first.dev)) != set(texts(other.dev))
    assert first.test == other.test


def test_a_development_file_is_used_where_there_is_one(pool):
    write(pool, validation=rows_of("b", 20))
    task = load_task("sst2", pool, shots=7)
    assert all(text.startswith("b ") for text in texts(task.dev))
    assert Counter(example.label for example in task.dev) == {0: 7, 1: 7}


# -- what does not fit -----------------------------------------------------------------------------


def test_an_unknown_task_gets_a_suggestion():
    with pytest.raises(UserError, match=r"unknown task 'sst3'; did you mean 'sst2'\? Known: ag"):
        load_task("sst3")


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere' does not exist; expected one with train\.jsonl"):
        load_task("sst2", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": rows_of("a", 8)}, r"has no test\.jsonl \(or \.csv\)"),
        ({"test": rows_of("a", 8)}, r"has no train\.jsonl or train_pool\.jsonl \(or \.csv\)"),
        ({"train": "", "test": rows_of("a", 8)}, r"train\.jsonl holds no examples"),
        ({"train": rows_of("a", 8), "test": "\n\n"}, r"test\.jsonl holds no examples"),
        ({"train": '{"text": "a", "label": 0}\n\n{"text"'}, r"train\.jsonl:3: not a JSON object"),
        ({"train": '["a", 0]\n'}, r"train\.jsonl:1: expected a JSON object, got list"),
        ({"train": '{"txt": "a", "label": 0}'}, r"jsonl:1: no column 'text'.*'label', 'txt'"),
        ({"train": '{"text": "a"}'}, r"no column 'label'; it has \['text'\].*columns={'label': "),
        ({"train": '{"text": null, "label": 0}'}, r"jsonl:1: no column 'text'"),
        ({"train": '{"text": "a", "label": 2}'}, r"label word for label 2; expected 0 to 1 or one"),
        ({"train": '{"text": "a", "label": -1}'}, r"no label word for label -1"),
        ({"train": '{"text": "a", "label": "fine"}'}, r"'fine'; .* one of \['bad', 'great'\]"),
        ({"train": '{"text": "a", "label": 0.5}'}, r"no label word for label 0\.5"),
    ],
)
def test_files_that_do_not_fit(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as error:
        load_task("sst2", write(tmp_path, **files))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na,0\nb\n", r"train\.csv:3: no column 'label'"),
        ("text,label\n", r"train\.csv holds no examples"),
        ("text;label\na;0\n", r"train\.csv:2: no column 'text'; it has \['text;label'\]"),
    ],
)
def test_csv_files_that_do_not_fit(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_task("sst2", write(tmp_path, ".csv", train=text))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_that_is_not_utf8_is_named(tmp_path, suffix):
    (tmp_path / f"train{suffix}").write_bytes('text,label\n"caf\xe9",0\n'.encode("latin-1"))
    with pytest.raises(UserError, match=rf"train\{suffix}.*UTF-8"):
        load_task("sst2", tmp_path)


def test_too_few_examples_of_a_class_says_how_many_and_what_to_do(tmp_path):
    write(tmp_path, train=rows_of("a", 12, labels=(0, 0, 1)), test=rows_of("c", 2))
    with pytest.raises(
        UserError,
        match=r"class 1 \('great'\) has 4 examples, but 3-shot train and dev sets need 6; "
        r"add examples or lower the shots to 2",
    ):
        load_task("sst2", tmp_path, shots=3)
    write(tmp_path, dev=rows_of("b", 4))
    with pytest.raises(UserError, match=r"has 2 examples, but 3-shot set need.* the shots to 2"):
        load_task("sst2", tmp_path, shots=3)
    with pytest.raises(UserError, match="shots must be at least 1 example a class; got 0"):
        load_task("sst2", tmp_path, shots=0)


@pytest.mark.parametrize("words", [["yes"], ["a", "b", "c"], []])
def test_a_label_word_for_each_class(words):
    with pytest.raises(UserError, match="'sst2' has 2 classes and needs a label word for each"):
        load_task("sst2", label_words=words)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_words": ("one",)}, "needs a label word for each of two or more classes"),
        ({"label_words": ("one", " ")}, "needs a label word for each"),
        ({"patterns": {"masked": "{text} It was"}}, r"must hold {mask} exactly once"),
        ({"patterns": {"masked": "{mask} {text} {mask}"}}, r"must hold {mask} exactly once"),
        ({"patterns": {"causal": "{text} {mask}"}}, r"must end where .* hold no {mask}"),
        ({"train": [Example({"text": "a"}, 2)]}, "train example 0 has label 2, for which there"),
        ({"dev": [Example({"txt": "a"}, 0)]}, r"dev example 0 has no field 'text'.*\['txt'\]"),
    ],
)
def test_a_task_that_cannot_work_is_refused_when_it_is_made(settings, message):
    settings = {"patterns": {"causal": "{text} It was"}, "label_words": ("bad", "great")} | settings
    with pytest.raises(UserError, match=message):
        Task("toy", **settings)


# -- the Hub ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """Pretend data sets, by name: split -> rows."""
    sets = {
        "stanfordnlp/sst2": {
            "train": [{"idx": i, "sentence": f"a {i}", "label": i % 2} for i in range(40)],
            "validation": rows_of("v", 5, column="sentence"),
            "test": rows_of("t", 5, labels=(-1,), column="sentence"),  # as on the Hub: unlabelled
        },
        "fancyzhx/ag_news": {
            "train": rows_of("a", 80, labels=(0, 1, 2, 3)),
            "test": rows_of("t", 6, labels=(0, 1, 2, 3)),
        },
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name: sets[name])


@pytest.mark.parametrize("name", ["sst2", "stanfordnlp/sst2"])
def test_sst2_from_the_hub(hub, name):
    task = load_task(name, shots=3)
    assert task.name == "sst2"
    assert Counter(example.label for example in task.train) == {0: 3, 1: 3}
    assert all(list(example.fields) == ["text"] for example in (*task.train, *task.test))
    # Its test labels are secret, so the validation split is the test set.
    assert task.test == tuple(Example({"text": f"v {i}"}, i % 2) for i in range(5))


@pytest.mark.parametrize("name", ["agnews", "fancyzhx/ag_news"])
def test_agnews_from_the_hub(hub, name):
    task = load_task(name, shots=3)
    assert task.label_words == ("World", "Sports", "Business", "Tech")
    assert Counter(example.label for example in task.dev) == dict.fromkeys(range(4), 3)
    assert texts(task.test) == [f"t {i}" for i in range(6)]


def test_without_a_connection_the_message_is_one_line(monkeypatch):
    def offline(name):
        raise OSError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"'stanfordnlp/sst2' from the Hub .*folder") as error:
        load_task("sst2")
    assert "\n" not in str(error.value)


# -- the built-in tasks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_built_in_patterns_have_the_same_fields_for_both_kinds(name):
    task = TASKS[name].task
    assert set(task.patterns) == {"causal", "masked"}
    assert len(set(task.label_words)) == len(task.label_words)


@pytest.mark.parametrize(("name", "classes"), [("sst2", 2), ("agnews", 4)])
def test_real_data(name, classes):
    if not (SHARED / name).is_dir():
        pytest.skip("no ../shared/data beside the repository")
    task = load_task(name, SHARED / name)
    assert len(task.label_words) == classes
    for split in (task.train, task.dev):
        assert Counter(example.label for example in split) == dict.fromkeys(range(classes), 16)
    assert len(task.test) > 1000
