"""The course: each question has an answer, which is computed, and a reason, which is true."""

import math
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from examples.optimizers import course

ASKED = course.questions()
CASES = yaml.safe_load(Path(__file__).with_name("cases.yaml").read_text())
experiment = cache(course.experiment)


@pytest.fixture
def ask(run, monkeypatch, capsys):
    """Write answers into the file that the command makes, run it, and return status and words."""

    def ask(text, *words):
        Path("answers.yaml").write_text(text)
        with pytest.raises(SystemExit) as e:
            run("course", *words)
        return e.value.code, " ".join("".join(capsys.readouterr()).split())

    monkeypatch.setattr(course, "experiment", experiment)
    return ask


@pytest.mark.parametrize("number", ASKED)
def test_a_question_tells_right_from_wrong_for_a_reason_that_is_true(number, ask):
    found, choices = experiment(number), re.findall(r"^- (\w)\) ", ASKED[number], re.MULTILINE)
    if choices:
        right, *wrong = sorted(choices, key=found.get)
        assert found[wrong[0]] - found[right] > 0.04 * abs(found[right])  # not by rounding
    else:
        off = float(re.findall(r"within\s+(\S+)\s+%", ASKED[number])[0]) / 100
        right = found["answer"] * (1 - 0.9 * off)
        wrong = [found["answer"] * (1 + 1.1 * off), -found["answer"]]
    assert f"{right} is right" in ask(f"{number}: {right}")[1]
    for answer in wrong:
        status, said = ask(f"{number}: {answer}")
        assert status == 0
        assert f"{answer} is wrong" in said
    claims = re.findall(r"`(.+?)`", course.EXPERIMENTS[number]["why"].format(**found))
    assert claims
    for claim in claims:
        assert claim in said
        assert not re.search(r"\.\d{8}", claim)  # digits that say nothing
        left, equal, right = claim.partition(" = ")
        text = f"isclose({left}, {right}, rel_tol=0.08)" if equal else claim
        assert eval(text, {**vars(math)}), claim
    assert [*Path().iterdir()] == [course.ANSWERS]  # a training leaves neither run nor figure


def test_the_file_is_made_and_an_answer_is_marked_once(ask, run):
    assert list(ASKED) == list(course.EXPERIMENTS) == list(range(1, 41))
    with pytest.raises(SystemExit):
        run("course")
    made = Path("answers.yaml").read_text()
    assert "0 right and 1 wrong of 40" in ask(made.replace("\n1:\n", "\n1: 5\n"))[1]
    marked = Path("answers.yaml").read_text().replace("\n13:\n", "\n13: 0.146\n")
    assert "\n1: 5  # wrong\n" in marked
    said = ask(marked)[1]
    assert "5 is wrong" not in said
    assert "1 right and 1 wrong of 40" in said
    assert "5 is wrong" in ask(marked, "1")[1]


@pytest.mark.parametrize(("text", "message"), CASES["course"])
def test_a_mistake_is_one_line(ask, text, message):
    status, said = ask(text, "7")
    assert (status, said.startswith("error: "), message in said) == (2, True, True)
