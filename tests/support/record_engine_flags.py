"""Record the flags of the engines' own parsers in `engine_flags.json`, by running this file.

The rehearsal's containers have no engine, so they check their arguments with this record. It is made of the
parsers of the engines that are set up here, and tests/engines/test_engine_flags.py compares the two.
TensorRT-LLM has no parser on a machine without a GPU. Its flags are those of `trtllm-serve` that its
documentation of 1.3.0rc13 lists and the course could use. They haven't been compared with 1.3.0rc28,
which the course starts.
"""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

from utils.engines import ENGINES, llama_cpp_server, sglang, vllm

RECORD = Path(__file__).with_name("engine_flags.json")
PYTHONS = {"vllm": vllm.PYTHON, "sglang": sglang.PYTHON}
DUMP = """
import argparse, contextlib, json, sys
def kind(action):
    name = getattr(action.type, "__name__", "")
    return {"kind": name} if name in ("int", "float") else {}
def values(action):
    return 1 if action.nargs is None else action.nargs
with contextlib.redirect_stdout(sys.stderr):  # imports may print
    exec(sys.argv[1])
    found = {}
    for action in parser._actions:
        choices = sorted(str(choice) for choice in action.choices or ())  # some are sets
        record = {"values": values(action), **kind(action), **({"choices": choices} if choices else {})}
        found |= {name: record for name in action.option_strings}
print(json.dumps(found))
"""
MAKE_PARSER = {
    "vllm": "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    "parser = make_arg_parser(FlexibleArgumentParser())",
    "sglang": "from sglang.srt.server_args import ServerArgs\n"
    "parser = argparse.ArgumentParser()\nServerArgs.add_cli_args(parser)",
}
TENSORRT_LLM = {
    "--host": {"values": 1},
    "--port": {"values": 1, "kind": "int"},
    "--backend": {"values": 1, "choices": ["pytorch", "_autodeploy"]},
    "--max_batch_size": {"values": 1, "kind": "int"},
    "--max_num_tokens": {"values": 1, "kind": "int"},
    "--max_seq_len": {"values": 1, "kind": "int"},
    "--tp_size": {"values": 1, "kind": "int"},
    "--kv_cache_free_gpu_memory_fraction": {"values": 1, "kind": "float"},
    "--config": {"values": 1},
    "--extra_llm_api_options": {"values": 1},
    "--reasoning_parser": {"values": 1},
    "--log_level": {"values": 1},
    "--trust_remote_code": {"values": 0},
}


def flags(engine):
    """Return an engine's flags: {"--port": {"values": 1, "kind": "int"}}, as its parser has them."""
    if engine == "tensorrt_llm":
        return TENSORRT_LLM
    if engine == "llama_cpp":
        hub = {"-hf": {"values": 1}}  # the wheel downloads no models, the image does
        table = {
            name: {"values": 0 if flag.read is None else 1}
            for flag in llama_cpp_server.FLAGS
            for name in flag.names
        }
        return hub | table
    answer = subprocess.run(
        [PYTHONS[engine], "-W", "ignore", "-c", DUMP, MAKE_PARSER[engine]],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    return json.loads(answer.stdout)


def record(engine):
    """Return the part of the record that belongs to an engine."""
    names = dataclasses.asdict(ENGINES[engine].metrics)
    metrics = {field: name for field, name in names.items() if name}
    return {"flags": flags(engine), "metrics": metrics}


def write_record():
    """Write the record of all engines."""
    found = {engine: record(engine) for engine in ("vllm", "sglang", "tensorrt_llm", "llama_cpp")}
    lines = []
    for engine, parts in found.items():
        rows = ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in parts["flags"].items())
        metrics = json.dumps(parts["metrics"])
        lines.append(f'"{engine}": {{"metrics": {metrics},\n "flags": {{\n  {rows}}}}}')
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write_record()
