"""Tasks from local files and from the Hub, and what is said about files that don't fit."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from rows import write_rows

from integrations import Example, Task, UserError, load_task
from integrations.tasks import TASKS, Recipe
from integrations.tasks.files import write_examples
from integrations.tasks.task import pattern_fields

SHARED = Path(__file__).parents[3] / "shared" / "data"


def rows_of(prefix, count, labels=(0, 1), column="text"):
    return [{column: f"{prefix} {i}", "label": labels[i % len(labels)]} for i in range(count)]


def write(folder, suffix=".jsonl", **splits):
    """Write splits as JSON lines or CSV; strings as they are."""
    for name, rows in splits.items():
        path = folder / f"{name}{suffix}"
        if isinstance(rows, str):
            path.write_text(rows)
        else:
            write_rows(path, rows)
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


@pytest.mark.parametrize("limit", [2, 7, 20, 23, 40])
def test_a_limit_on_a_test_set_that_comes_class_by_class_takes_from_all(tmp_path, limit):
    rows = sorted(rows_of("c", 100), key=lambda row: row["label"])
    write(tmp_path, train=rows_of("a", 8), test=rows)
    limited = load_task("sst2", tmp_path, shots=2, test_limit=limit).test
    assert len(limited) == limit
    counts = Counter(example.label for example in limited)
    assert abs(counts[0] - counts[1]) <= 1


# -- few-shot splits -------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path):
    return write(tmp_path, train_pool=rows_of("a", 60), test=rows_of("c", 3))


def test_train_and_dev_are_disjoint_and_have_k_examples_a_class(pool):
    task = load_task("sst2", pool, shots=7)
    for split in (task.train, task.dev):
        assert Counter(example.label for example in split) == {0: 7, 1: 7}
    assert len({*texts(task.train), *texts(task.dev)}) == 28


@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_a_seed_is_a_whole_number(pool, seed):
    with pytest.raises(UserError, match="seed must be a whole number of 0 or more; got"):
        load_task("sst2", pool, seed=seed)


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
        (
            f"text,label\n{'a' * 200_000},0\n",
            r"train\.csv is no CSV that .* \(field larger",
        ),
        (
            "text,label\na,0\nGood plot, bad acting,1\n",
            r"train\.csv:3: more cells than .* in quotes",
        ),
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
        ({"patterns": {"seq2seq": "{text} It was"}}, r"for seq2seq models must hold {mask} exact"),
        ({"patterns": {"causal": "{text} {mask}"}}, r"must end where .* hold no {mask}"),
        ({"patterns": {"cause": "{text}"}}, "unknown kind of model 'cause'; did you mean 'causal'"),
        ({"patterns": {"causal": "{text It was"}}, r"'{text It was' cannot be read .*; write {{"),
        ({"patterns": {"causal": "{} It was"}}, r"{} is no field in '{} It was'"),
        ({"patterns": {"causal": "{text} {label}"}}, r"{label} is no field in"),
        ({"label_names": ("neg",)}, "has 2 label words but 1 label names"),
        ({"metric": "acuracy"}, "unknown metric 'acuracy'; did you mean 'accuracy'"),
        ({"metric": "f1", "label_words": "abc"}, "'f1' is that of label 1 of two, but there are 3"),
        ({"train": [Example({"text": "a"}, 2)]}, "train example 0 has label 2, for which there"),
        ({"dev": [Example({"txt": "a"}, 0)]}, r"dev example 0 has no field 'text'.*\['txt'\]"),
    ],
)
def test_a_task_that_cannot_work_is_refused_when_it_is_made(settings, message):
    settings = {"patterns": {"causal": "{text} It was"}, "label_words": ("bad", "great")} | settings
    with pytest.raises(UserError, match=message):
        Task("toy", **settings)


# -- a task of one's own ---------------------------------------------------------------------------


@pytest.fixture
def tickets():
    return Task(
        name="tickets",
        patterns={"causal": "{text}\nThis goes to"},
        label_words=("sales", "support", "billing"),
    )


def queue(i):
    return ("sales", "support", "billing")[i % 3]


def test_a_task_and_one_csv(tmp_path, tickets):
    """Train and dev are drawn from it, and what is left is the test set."""
    rows = [{"message": f"m {i}", "queue": queue(i)} for i in range(21)]
    write(tmp_path, ".csv", tickets=rows)
    columns = {"text": "message", "label": "queue"}
    task = load_task(tickets, tmp_path / "tickets.csv", columns=columns, shots=2)
    assert len(task.train) == len(task.dev) == 6
    assert len(task.test) == 9
    everything = (*task.train, *task.dev, *task.test)
    assert sorted(texts(everything)) == sorted(row["message"] for row in rows)
    assert all(queue(int(e.fields["text"][2:])) == tickets.label_words[e.label] for e in everything)
    assert texts(task.test) == sorted(texts(task.test), key=lambda text: int(text[2:]))
    limited = load_task(tickets, str(tmp_path / "tickets.csv"), columns=columns, shots=2,
                        test_limit=4)  # fmt: skip
    assert limited.test == task.test[:4]


def test_a_task_and_a_folder(tmp_path, tickets):
    write(tmp_path, train=rows_of("a", 18, (0, 1, 2)), test=rows_of("c", 5, (2, 1)))
    task = load_task(tickets, tmp_path, shots=3, label_words=("buy", "help", "pay"))
    assert task.label_words == ("buy", "help", "pay")
    assert [example.label for example in task.test] == [2, 1, 2, 1, 2]


def test_what_the_data_calls_the_classes(tmp_path):
    rows = [{"text": f"t {i}", "label": ("neg", "pos", "great", 0)[i % 4]} for i in range(16)]
    write(tmp_path, reviews=rows)
    task = Task("r", {"causal": "{text} It was"}, ("bad", "great"), label_names=("neg", "pos"))
    task = load_task(task, tmp_path / "reviews.jsonl", shots=2)
    label = {0: 0, 1: 1, 2: 1, 3: 0}
    for example in task.train:
        assert example.label == label[int(example.fields["text"][2:]) % 4]
    write(tmp_path, reviews=[{"text": "t", "label": "good"}])
    with pytest.raises(UserError, match=r"'good'.* one of \['bad', 'great'\] or of \['neg', 'pos'"):
        load_task(task, tmp_path / "reviews.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_classes_that_are_called_by_numbers(tmp_path, suffix):
    """Ratings are no indices, neither in a file nor when they come back from a saved task."""
    names = ("1", "2", "3")
    ratings = Task("ratings", {"causal": "{text} It was"}, ("bad", "fair", "great"),
                   label_names=names)  # fmt: skip
    write(tmp_path, suffix, train=rows_of("a", 6, (1, 2, 3)), test=rows_of("b", 3, (3, 1, 2)))
    task = load_task(ratings, tmp_path, shots=1)
    assert [example.label for example in task.test] == [2, 0, 1]
    again = load_task(ratings, task.save(tmp_path / "saved"))
    assert (again.train, again.dev, again.test) == (task.train, task.dev, task.test)
    write(tmp_path, suffix, train=rows_of("a", 6, (0, 1, 2)))
    with pytest.raises(UserError, match=r"no label word for label '?0'?; expected one of \['bad'"):
        load_task(ratings, tmp_path, shots=1)


def test_a_field_of_several_columns(tmp_path):
    rows = [{"title": f"t {i}", "content": f"c {i}", "label": i % 14} for i in range(28)]
    write(tmp_path, train=rows, test=rows[:1])
    task = load_task("dbpedia", tmp_path, shots=1, columns={"text": ("title", "content")})
    assert texts(task.test) == ["t 0 c 0"]
    with pytest.raises(UserError, match=r"no column 'body'; it has .* column of 'text'"):
        load_task("dbpedia", tmp_path, columns={"text": ("title", "body")})


def test_what_is_no_task(tmp_path, tickets):
    with pytest.raises(UserError, match=r"'tickets' is none of the built-in .* needs data="):
        load_task(tickets)
    with pytest.raises(UserError, match="must be a name, a Task or a Recipe; got dict"):
        load_task({"name": "tickets"}, tmp_path)
    (tmp_path / "tickets.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"tickets\.xlsx is neither JSON lines nor CSV"):
        load_task(tickets, tmp_path / "tickets.xlsx")


def test_one_file_has_to_hold_enough_for_train_and_dev(tmp_path, tickets):
    write(tmp_path, tickets=rows_of("a", 9, (0, 1, 2)))
    with pytest.raises(
        UserError, match=r"class 0 \('sales'\) has 3 examples, but 2-shot train and"
    ):
        load_task(tickets, tmp_path / "tickets.jsonl", shots=2)


# -- saved splits ----------------------------------------------------------------------------------


@pytest.fixture
def saved(pool, tmp_path):
    """A task with odd texts, and the folder that it was saved to."""
    task = load_task("sst2", pool, shots=5, seed=3, label_words=("poor", "fine"))
    odd = Example({"text": 'naïve\r\n"x",\u2028 {mask} \U0001f600\ttab', "source": "web"}, 1)
    task = replace(task.with_splits(task.train, task.dev, (*task.test, odd)), metric="f1")
    return task, task.save(tmp_path / "saved" / "task")


def test_a_saved_task_is_the_same_with_the_same_examples_in_the_same_order(saved):
    task, folder = saved
    assert Task.load(folder) == task
    assert {path.name for path in folder.iterdir()} == {
        "task.json",
        "train.jsonl",
        "dev.jsonl",
        "test.jsonl",
    }


def test_saved_splits_are_not_drawn_anew(saved):
    task, folder = saved
    for settings in ({}, {"shots": 2}, {"seed": 9}, {"columns": {"text": "sentence"}}):
        again = load_task("sst2", folder, **settings)
        assert (again.train, again.dev, again.test) == (task.train, task.dev, task.test)
        assert again.label_words == ("bad", "great")  # the first argument says what the task is
    again = load_task("sst2", str(folder), label_words=("poor", "fine"), test_limit=2)
    assert again == replace(task, metric="accuracy", test=task.test[:2])


def test_a_save_replaces_an_earlier_one(saved):
    task, folder = saved
    other = task.with_splits(task.dev, (), ())
    other.save(folder)
    assert Task.load(folder) == other


def test_a_save_that_fails_leaves_the_earlier_one(saved, monkeypatch):
    task, folder = saved
    files = sorted(folder.iterdir())
    written = []

    def full(path, examples):
        if written:
            raise OSError("no space left on device")
        written.append(write_examples(path, examples))

    monkeypatch.setattr("integrations.tasks.task.write_examples", full)
    with pytest.raises(OSError, match="no space"):
        task.with_splits(task.dev, (), ()).save(folder)
    assert Task.load(folder) == task
    assert sorted(folder.iterdir()) == files


def test_saved_splits_of_another_task(saved):
    with pytest.raises(UserError, match=r"train example 0 has no field 'text1', which the masked"):
        load_task("rte", saved[1])


def test_a_folder_that_was_not_saved_or_is_damaged(saved, pool):
    with pytest.raises(UserError, match=r"holds no task\.json; Task\.save\(\) writes one"):
        Task.load(pool)
    _, folder = saved
    (folder / "dev.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no dev\.jsonl; save the task again"):
        Task.load(folder)
    for text in ("{", "{}", '{"name": 1, "label_words": [], "label_names": [], "more": 0}'):
        (folder / "task.json").write_text(text)
        with pytest.raises(UserError, match=r"task\.json is not what Task\.save\(\) wrote"):
            Task.load(folder)


# -- the Hub ---------------------------------------------------------------------------------------

PAIRS = ["sentence1", "sentence2"]
DBPEDIA = [
    *("Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder"),
    *("MeanOfTransportation", "Building", "NaturalPlace", "Village", "Animal", "Plant", "Album"),
    *("Film", "WrittenWork"),
]
# For each data set as it is on the Hub: text columns, names of the labels in their order, and
# splits with the labels that occur in them.
HUB = {
    ("stanfordnlp/sst2",): (
        ["sentence"],
        ["negative", "positive"],
        {"train": (0, 1), "validation": (0, 1), "test": (-1,)},
    ),
    ("fancyzhx/yelp_polarity",): (["text"], ["1", "2"], {"train": (0, 1), "test": (0, 1)}),
    ("fancyzhx/ag_news",): (
        ["text"],
        ["World", "Sports", "Business", "Sci/Tech"],
        {"train": range(4), "test": range(4)},
    ),
    ("fancyzhx/dbpedia_14",): (
        ["title", "content"],
        DBPEDIA,
        {"train": range(14), "test": range(14)},
    ),
    ("nyu-mll/glue", "mrpc"): (
        PAIRS,
        ["not_equivalent", "equivalent"],
        {"train": (0, 1), "validation": (0, 1), "test": (0, 1)},
    ),
    ("nyu-mll/glue", "rte"): (
        PAIRS,
        ["entailment", "not_entailment"],
        {"train": (0, 1), "validation": (0, 1), "test": (-1,)},
    ),
    ("stanfordnlp/snli",): (
        ["premise", "hypothesis"],
        ["entailment", "neutral", "contradiction"],
        {"train": (-1, 0, 1, 2), "validation": (-1, 0, 1, 2), "test": (0, 1, -1, 2)},
    ),
}
# What the paper's authors answer with, for each label's name where the names say what they mean.
MEANING = {
    "sst2": {"negative": "bad", "positive": "great"},
    "mrpc": {"not_equivalent": "No", "equivalent": "Yes"},
    "rte": {"entailment": "Yes", "not_entailment": "No"},
    "snli": {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"},
    "agnews": {"World": "World", "Sports": "Sports", "Business": "Business", "Sci/Tech": "Tech"},
}


def hub_set(text_columns, label_names, splits):
    """A small data set with the features of the real one."""
    features = datasets.Features(
        {name: datasets.Value("string") for name in text_columns}
        | {"label": datasets.ClassLabel(names=label_names), "idx": datasets.Value("int32")}
    )
    made = {}
    for split, labels in splits.items():
        rows = 8 * len(labels)
        columns = {name: [f"{split} {name} {i}" for i in range(rows)] for name in text_columns}
        columns |= {"label": [*labels] * 8, "idx": [*range(rows)]}
        made[split] = datasets.Dataset.from_dict(columns, features=features)
    return datasets.DatasetDict(made)


@pytest.fixture
def hub(monkeypatch):
    """The Hub, with small data sets of the real names, columns and labels."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *name: hub_set(*HUB[name]))


@pytest.mark.parametrize("name", TASKS)
def test_built_in_tasks_load_from_the_hub(hub, name):
    task = load_task(name, shots=3)
    recipe = TASKS[name]
    columns, names, _ = HUB[recipe.hub]
    classes = range(len(names))
    assert task == load_task(recipe.hub_name, shots=3)
    for split in (task.train, task.dev):
        assert Counter(example.label for example in split) == dict.fromkeys(classes, 3)
    assert Counter(example.label for example in task.test) == dict.fromkeys(classes, 8)
    assert not set(map(str, task.train)) & set(map(str, task.dev))
    # The fields are the columns, in order; joined where there are more columns than fields.
    texts = list(task.test[0].fields.values())
    assert list(task.test[0].fields) == list(task.fields)
    assert " ".join(texts).replace("validation", "test") == " ".join(f"test {c} 0" for c in columns)
    if name in MEANING:
        assert [MEANING[name][label] for label in names] == list(task.label_words)
    else:
        assert len(task.label_words) == len(names)
    assert not task.label_names or list(task.label_names) == names


def test_glue_sets_are_named_with_their_configuration(hub):
    assert load_task("nyu-mll/glue:mrpc", shots=2).name == "mrpc"
    with pytest.raises(UserError, match=r"did you mean 'nyu-mll/glue:.*'\? Known: agnews, .*:mrpc"):
        load_task("nyu-mll/glue")


@pytest.mark.parametrize("name", ["sst2", "rte"])
def test_where_test_labels_are_secret_the_validation_split_is_the_test_set(hub, name):
    assert all("validation" in str(example.fields) for example in load_task(name, shots=2).test)


def test_rows_without_a_label_are_dropped(hub):
    """SNLI's annotators disagreed on some."""
    task = load_task("snli", shots=4)
    assert Counter(example.label for example in task.test) == {0: 8, 1: 8, 2: 8}
    limited = load_task("snli", shots=4, test_limit=5).test
    assert [example.label for example in limited] == [0, 1, 2, 0, 1]
    assert limited == task.test[:5]


def test_the_same_rows_are_drawn_from_the_hub_and_from_files(hub, tmp_path):
    rows = hub_set(*HUB["stanfordnlp/snli",])
    for split in ("train", "test"):
        labelled = rows[split].filter(lambda row: row["label"] >= 0)
        write(tmp_path, **{split: list(labelled)})
    columns = {"text1": "premise", "text2": "hypothesis"}
    assert load_task("snli", tmp_path, columns=columns, shots=3, seed=5) == load_task(
        "snli", shots=3, seed=5
    )


def test_a_recipe_of_ones_own(monkeypatch):
    rows = datasets.Dataset.from_list(
        [{"body": f"b {i}", "mood": ("calm", "cross")[i % 2]} for i in range(8)]
    )
    asked = []

    def load_dataset(*name):
        asked.append(name)
        return {"train": rows, "held_out": rows}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    moods = Task("moods", {"causal": "{text} I am"}, ("calm", "angry"), label_names=CALM)
    columns = {"text": "body", "label": "mood"}
    task = load_task(Recipe(moods, ("me/moods", "en"), columns, test="held_out"), shots=2)
    assert asked == [("me/moods", "en")]
    assert [example.label for example in task.test] == [0, 1] * 4
    with pytest.raises(UserError, match=r"split 'test' of me/moods:en does not exist; .* held_out"):
        load_task(Recipe(moods, ("me/moods", "en"), columns))
    with pytest.raises(UserError, match=r"split 'train' of .* has no column 'text', only \['bo"):
        load_task(Recipe(moods, ("me/moods", "en"), test="held_out"))
    with pytest.raises(UserError, match=r"split 'train' of me/moods: no label word .* 'cross'"):
        load_task(Recipe(replace(moods, label_names=()), ("me/moods",), columns, "held_out"))


CALM = ("calm", "cross")


def test_a_split_without_labels_is_no_test_set(hub):
    sst2 = replace(TASKS["sst2"], test="test")
    with pytest.raises(UserError, match=r"split 'test' of stanfordnlp/sst2 has no labelled rows"):
        load_task(sst2, shots=2)


def test_without_a_connection_the_message_is_one_line(monkeypatch):
    def offline(*name):
        raise OSError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"'stanfordnlp/sst2' from the Hub .*folder") as error:
        load_task("sst2")
    assert "\n" not in str(error.value)


# -- the built-in tasks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_built_in_patterns_have_the_same_fields_for_all_kinds(name):
    task = TASKS[name].task
    assert set(task.patterns) == {"causal", "masked"}
    for kind in ("causal", "masked", "seq2seq"):
        assert set(pattern_fields(task.pattern(kind))) - {"mask"} == set(task.fields)
    assert len(set(task.label_words)) == len(task.label_words)


def test_a_seq2seq_model_gets_the_masked_pattern_unless_it_has_its_own():
    patterns = {"causal": "{text} It was", "masked": "{text} It was {mask} ."}
    task = Task("toy", patterns, ("bad", "great"))
    assert task.pattern("seq2seq") == patterns["masked"]
    own = patterns | {"seq2seq": "mood: {text} {mask}"}
    assert replace(task, patterns=own).pattern("seq2seq") == own["seq2seq"]
    with pytest.raises(UserError, match="no pattern for seq2seq models, only for causal"):
        Task("toy", {"causal": "{text} It was"}, ("bad", "great")).pattern("seq2seq")


REAL = {"sst2": 2, "yelp": 2, "agnews": 4, "dbpedia": 14, "mrpc": 2, "rte": 2}


@pytest.mark.parametrize(("name", "classes"), REAL.items())
def test_real_data(name, classes):
    if not (SHARED / name).is_dir():
        pytest.skip("no ../shared/data beside the repository")
    task = load_task(name, SHARED / name)
    assert len(task.label_words) == classes
    for split in (task.train, task.dev):
        assert Counter(example.label for example in split) == dict.fromkeys(range(classes), 16)
    assert len(task.test) > 100
