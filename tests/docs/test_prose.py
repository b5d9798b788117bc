"""The course is in plain English: sentences with subjects, and the logic written out (CONTRIBUTING.md)."""

import pytest
from prose import (
    HABITS,
    Paragraph,
    cases,
    course_paragraphs,
    markdown_paragraphs,
    python_paragraphs,
    words,
)

KINDS = [(habit, kind) for habit in HABITS for kind in habit.kinds]


@pytest.fixture(scope="module")
def paragraphs():
    return list(course_paragraphs())


@pytest.mark.parametrize(
    ("habit", "kind"), KINDS, ids=[f"{habit.name}, {kind}" for habit, kind in KINDS]
)
def test_text_is_plain_english(habit, kind, paragraphs):
    chosen = [paragraph for paragraph in paragraphs if paragraph.kind == kind]
    found = cases(habit, chosen)
    rate = 1000 * len(found) / words(chosen)
    limit = f"at least {habit.least}" if habit.most is None else f"at most {habit.most}"
    message = f"{rate:.2f} per 1,000 words, but {limit} are allowed. {habit.advice}"
    assert habit.least <= rate, message
    assert habit.most is None or rate <= habit.most, "\n".join([message, *found])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("what as a noun", "What cannot run says so, and why."),
        ("what as a noun", "The table shows, of what was measured, a half."),
        ("stands", "How to release stands in a file."),
        ("who as a noun", "Whoever teaches has a fourth."),
        ("who as a noun", "This folder is for who wants an engine."),
        ("beside", "It is quick beside an index."),
        ("says so", "The lab says why it stopped."),
        ("behind", "The number behind its name is a limit."),
        ("colons", "Two things: a key and a value."),
        ("connectives", "It stops, because the limit is met."),
        ("riddles", "Of the KV cache."),
    ],
)
def test_habit_is_found(name, text):
    (habit,) = (habit for habit in HABITS if habit.name == name)
    assert len(cases(habit, [Paragraph("documents", "here", text)])) == 1


@pytest.mark.parametrize(
    "text", ["What is a token?", "Who pays for it, and when?", "A token stands for a word."]
)
def test_question_and_idiom_are_no_case(text):
    asked = [habit for habit in HABITS if "messages" in habit.kinds]
    assert not [case for habit in asked for case in cases(habit, [Paragraph("labs", "here", text)])]


def test_markdown_is_read_without_code_and_tables():
    prose = "# A head\n\nA `code` span\nand [a link](where.md)."
    text = f"{prose}\n\n| a | b |\n|---|---|\n| c | d |\n\n```\nx\n```\n"
    found = list(markdown_paragraphs("documents", "page", 10, text))
    assert [(paragraph.where, paragraph.text) for paragraph in found] == [
        ("page:11", "A head"),
        ("page:13", "A X span and a link."),
    ]


def test_python_is_read_by_entry_and_message():
    source = '''
def f(a):
    """Return a thing.

    It has
    two lines.

    Args:
        a: Number of
            draws.
        b (list): Some `code`.

    Raises:
        ValueError: If it fails.
    """
    raise ValueError(f"{a} is wrong." + " Use 3.")
'''
    found = [paragraph.text for paragraph in python_paragraphs("file", source)]
    assert found == [
        "Return a thing.",
        "It has two lines.",
        "Number of draws.",
        "Some X.",
        "If it fails.",
        "X is wrong. Use 3.",
    ]
