"""Every error has its row, its documentation, and one shape."""

from pathlib import Path

import pytest

from control_plane.api.problem import problem_document
from control_plane.errors import PROBLEMS, FieldError, QueueFull, ServiceUnavailable, ServingError, problem_of

ROOT = Path(__file__).parent.parent.parent


def _tree(root: type[ServingError]) -> list[type[ServingError]]:
    return [root, *(sub for child in root.__subclasses__() for sub in _tree(child))]


@pytest.mark.parametrize("cls", _tree(ServingError))
def test_error_has_a_row_of_its_own_and_documentation(cls: type[ServingError]) -> None:
    assert cls in PROBLEMS
    assert f"## {PROBLEMS[cls].slug}\n" in (ROOT / "docs/errors.md").read_text()


def test_error_slugs_are_unique() -> None:
    slugs = [problem.slug for problem in PROBLEMS.values()]
    assert len(slugs) == len(set(slugs))


def test_error_of_an_unlisted_subclass_takes_its_parents_row() -> None:
    class Special(QueueFull):
        pass

    assert problem_of(Special("x")).slug == "queue-full"
    del Special


@pytest.mark.parametrize(
    "cls", [cls for cls in _tree(ServingError) if PROBLEMS.get(cls) and PROBLEMS[cls].status == 503]
)
def test_error_503_says_when_to_try_again(cls: type[ServingError]) -> None:
    assert issubclass(cls, ServiceUnavailable)
    assert cls.retry_after_s is not None


def test_problem_document_holds_the_facts() -> None:
    error = ServingError(
        "It broke.",
        expected="a",
        got="b",
        remedy="Do c.",
        errors=[FieldError(path="x[0]", message="bad")],
        facts={"code": "k", "status": 1},
    )
    document = problem_document(error, request_id="r", instance="/p")
    assert document == {
        "type": "/docs/errors#internal",
        "title": "Internal error",
        "status": 500,
        "detail": "It broke. Expected a; got b. Do c.",
        "instance": "/p",
        "request_id": "r",
        "expected": "a",
        "got": "b",
        "remedy": "Do c.",
        "errors": [{"path": "x[0]", "message": "bad"}],
        "code": "k",
    }
