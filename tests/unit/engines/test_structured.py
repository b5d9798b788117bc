"""Constraints in each engine's words, and the judge of what comes back."""

import pytest

from utils.engines import UnsupportedOption
from utils.engines.registry import get_spec
from utils.engines.structured import fault, request_fields

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def test_each_engine_is_asked_in_its_own_words():
    vllm, sglang, llama = (get_spec(name) for name in ("vllm", "sglang", "llama_cpp"))
    asked = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA},
    }
    for spec in (vllm, sglang, llama):
        assert request_fields(spec, {"json_schema": SCHEMA}) == {"response_format": asked}
        assert request_fields(spec, {}) == {}
    assert request_fields(vllm, {"regex": "a+"}) == {"structured_outputs": {"regex": "a+"}}
    assert request_fields(sglang, {"regex": "a+"}) == {"regex": "a+"}
    choice = {"choice": ["yes", "no (1.)"]}
    assert request_fields(vllm, choice) == {"structured_outputs": choice}
    assert request_fields(sglang, choice) == {"regex": r"yes|no\ \(1\.\)"}


@pytest.mark.parametrize("constraint", [{"regex": "a"}, {"choice": ["a"]}, {"poem": "ode"}])
def test_unsupported_constraint_is_reported(constraint):
    with pytest.raises(UnsupportedOption, match=r"llama\.cpp has no .* constraint. It has: json"):
        request_fields(get_spec("llama_cpp"), constraint)


@pytest.mark.parametrize(
    ("text", "constraint", "says"),
    [
        ("anything", {}, ""),
        ('{"n": 1}', {"json_schema": SCHEMA}, ""),
        ('{"n": "1"}', {"json_schema": SCHEMA}, "is not of type 'integer'"),
        ('{"n": 1', {"json_schema": SCHEMA}, "no JSON"),
        ("", {"json_schema": SCHEMA}, "no JSON"),
        ("aaa", {"regex": "a+"}, ""),
        ("aaab", {"regex": "a+"}, "does not match"),
        ("yes", {"choice": ["yes", "no"]}, ""),
        ("yes!", {"choice": ["yes", "no"]}, "none of the choices"),
    ],
)
def test_answers_are_judged(text, constraint, says):
    found = fault(text, constraint)
    assert (says in found) if says else found == ""
