"""Text tasks take their examples from local files, as tasks with label words do."""

import pytest
from rows import write_rows

from integrations import ContinuationTask, GenerationTask, TextExample, UserError, load_task

PATTERN = "Question: {question} Answer:"
ROWS = [{"question": f"q{i}", "reference": f"a{i}", "source": f"s{i % 3}"} for i in range(10)]
UNSCORED = [{"question": row["question"]} for row in ROWS]


def length(texts, examples):
    return [float(len(text)) for text in texts]


@pytest.fixture
def exact():
    return GenerationTask(name="answers", pattern=PATTERN)


@pytest.fixture
def rewarded():
    return GenerationTask(name="answers", pattern=PATTERN, score=length)


def questions(examples):
    return [example.fields["question"] for example in examples]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("kind", [GenerationTask, ContinuationTask])
def test_one_file_is_drawn_from_and_the_rest_is_the_test_set(tmp_path, suffix, kind):
    file = write_rows(tmp_path / f"all{suffix}", ROWS)
    task = load_task(kind(name="answers", pattern=PATTERN), file, shots=3)
    assert type(task) is kind
    assert (len(task.train), len(task.dev), len(task.test)) == (3, 3, 4)
    found = [*task.train, *task.dev, *task.test]
    assert sorted(questions(found)) == [f"q{i}" for i in range(10)]
    for example in found:
        number = int(example.fields["question"][1:])
        assert example == TextExample(
            {"question": f"q{number}", "source": f"s{number % 3}"}, f"a{number}"
        )
    assert questions(task.test) == sorted(questions(task.test))


def test_the_seed_draws_the_splits(tmp_path, exact):
    file = write_rows(tmp_path / "all.jsonl", ROWS)
    tasks = [load_task(exact, file, shots=3, seed=seed) for seed in (0, 0, 1)]
    assert tasks[0] == tasks[1]
    assert tasks[0].train != tasks[2].train


def test_a_folder_of_files(tmp_path, exact):
    write_rows(tmp_path / "train.jsonl", ROWS[:4])
    write_rows(tmp_path / "test.csv", ROWS[8:])
    task = load_task(exact, tmp_path, shots=2, test_limit=1)
    assert sorted(questions([*task.train, *task.dev])) == ["q0", "q1", "q2", "q3"]
    assert questions(task.test) == ["q8"]
    write_rows(tmp_path / "dev.jsonl", ROWS[4:8])
    task = load_task(exact, tmp_path, shots=4)
    assert sorted(questions(task.train)) == ["q0", "q1", "q2", "q3"]
    assert sorted(questions(task.dev)) == ["q4", "q5", "q6", "q7"]


def test_columns_by_other_names(tmp_path, exact):
    rows = [{"title": f"t{i}", "body": f"b{i}", "question": "?", "gold": i} for i in range(4)]
    file = write_rows(tmp_path / "all.jsonl", rows)
    columns = {"question": ["title", "body"], "reference": "gold"}
    task = load_task(exact, file, shots=2, columns=columns)
    found = {example.fields["question"]: example.reference for example in (*task.train, *task.dev)}
    assert found == {f"t{i} b{i}": str(i) for i in range(4)}


def test_a_score_of_ones_own_needs_no_reference(tmp_path, rewarded):
    task = load_task(rewarded, write_rows(tmp_path / "all.csv", UNSCORED), shots=2)
    assert {example.reference for example in (*task.train, *task.dev)} == {None}
    task = load_task(rewarded, write_rows(tmp_path / "all.csv", ROWS), shots=2)
    assert None not in {example.reference for example in (*task.train, *task.dev)}


def test_a_task_that_has_its_examples_stays_as_it_is(exact):
    examples = [TextExample({"question": row["question"]}, row["reference"]) for row in ROWS]
    whole = exact.with_splits(examples[:2], examples[2:4], examples[4:])
    assert load_task(whole) == whole
    assert load_task(whole, test_limit=2).test == tuple(examples[4:6])
    scored = exact.with_splits((), (), examples)
    assert load_task(scored) == scored


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (UNSCORED, {}, r"all.jsonl:1: no column 'reference'; it has \['question'\]. Name the"),
        (
            [{**ROWS[0], "reference": " "}],
            {},
            "jsonl:1: the reference is empty; task 'answers'",
        ),
        ([{"reference": "a"}], {}, "no column 'question'"),
        ([{**ROWS[0], "reference": ["a"]}], {}, "jsonl:1: column 'reference' holds a list; expec"),
        ([{**ROWS[0], "question": {"en": "q"}}], {}, "column 'question' holds a dict"),
        ([], {}, "all.jsonl holds no examples"),
        (
            ROWS[:1],
            {},
            "has 1 examples, but 1-shot train and dev sets need 2; add examples",
        ),
        (ROWS, {"columns": {"text": "x"}}, "columns names 'text', .* are question, reference"),
        (ROWS, {"shots": 6}, "the data has 10 examples, but 6-shot train and dev sets"),
        (ROWS, {"shots": 0}, "shots must be at least 1 example; got 0"),
        (ROWS, {"label_words": ("a", "b")}, "has no label words; leave label_words"),
        (ROWS, {"test_limit": 0}, "test_limit must be at least 1"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, exact, rows, settings, message):
    with pytest.raises(UserError, match=message):
        load_task(exact, write_rows(tmp_path / "all.jsonl", rows), **{"shots": 1} | settings)


def test_no_examples_at_all(tmp_path, exact):
    with pytest.raises(UserError, match="has no examples and needs data="):
        load_task(exact)
    with pytest.raises(UserError, match="does not exist"):
        load_task(exact, tmp_path / "nowhere")
    whole = exact.with_splits([TextExample({"question": "q"}, "a")], ())
    with pytest.raises(UserError, match="columns are those of data, and there is none"):
        load_task(whole, columns={"question": "text"})


def test_a_short_csv_row_lacks_what_it_lacks(tmp_path, rewarded):
    file = tmp_path / "all.csv"
    file.write_text("question,source\nq0,s0,\nq1\n")
    task = load_task(rewarded, file, shots=1)
    found = sorted((*task.train, *task.dev), key=lambda example: example.fields["question"])
    assert [dict(e.fields) for e in found] == [
        {"question": "q0", "source": "s0"},
        {"question": "q1"},
    ]
