"""EleutherAI's lm-evaluation-harness gets the same results through the gateway as from vLLM itself."""

import json
import os
import subprocess

import pytest

from benchmarks.peers import EVALUATORS
from utils.gateway.local_gateway import models_of, serve
from utils.profiles import MODELS

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        not EVALUATORS.done(), reason="not set up: .venv/bin/python -m benchmarks.peers evaluators"
    ),
]
QUESTIONS = [
    ("What is a KV cache?", "keys"),
    ("Write an SQL query that selects title from books.", "title"),
    ("Write a JSON object with name Ada and age 36.", "Ada"),
]
TASK = """
task: course_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""
GENERATE = """
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 16, temperature: 0}
metric_list: [{metric: exact_match}]
"""
CHOOSE = """
doc_to_choice: ["keys", "title", "Ada"]
metric_list: [{metric: acc}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The folder of two tasks: one generates text, one compares log-likelihoods of token-id prompts."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = [json.dumps({"question": asked, "answer": answer}) for asked, answer in QUESTIONS]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    for kind, more in (("generate_until", GENERATE), ("multiple_choice", CHOOSE)):
        (folder / f"{kind}.yaml").write_text(TASK.format(kind=kind, folder=folder, more=more))
    return folder


def evaluate(url, model, tasks, out):
    """Return the harness's raw responses to the questions of each task."""
    tokenizer = MODELS / "tiny"
    given = {"model": model, "base_url": url, "tokenizer": tokenizer, "max_retries": 1}
    command = [EVALUATORS.target / "bin" / "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in given.items())]
    command += [
        "--tasks",
        "course_generate_until,course_multiple_choice",
        "--include_path",
        tasks,
        "--batch_size",
        "1",
    ]
    command += ["--log_samples", "--output_path", out]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **offline},
        cwd=tasks,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [
        [json.loads(line)["resps"] for line in samples.read_text().splitlines()]
        for samples in sorted(out.rglob("samples_*.jsonl"))
    ]


def test_gateway_gives_harness_answers_of_engine(vllm, tasks, tmp_path):
    with serve(models_of({"tiny": [vllm]})) as gateway:
        through = evaluate(
            f"{gateway.base_url}/v1/completions", "tiny", tasks, tmp_path / "gateway"
        )
    address = f"{vllm.base_url}/v1/completions"
    direct = evaluate(address, vllm.model, tasks, tmp_path / "direct")
    assert [len(task) for task in through] == [len(QUESTIONS)] * 2
    assert through == direct
