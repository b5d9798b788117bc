"""Stand-in for the engines' containers in the rehearsal. It checks its arguments, and serves a paced stub.

The rehearsal's images run `stub_engine.py ENGINE ARGUMENTS...` with the standard library alone. The stub

* asks the rehearsal's hub whether it is to fail, and tells it its arguments;
* refuses a flag or a value that the engine's own parser refuses (`engine_flags.json`), and a missing GPU;
* downloads its model as the engine would: as root, into the cache that was mounted;
* writes the lines that the course reads in an engine's log;
* serves the engine's API. A token is a word, an answer depends on its prompt alone, prefill takes time for
  each token that no earlier prompt had, and decoding takes the same time for each token.

Its figures are no engine's, and the records of a rehearsal say so.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HUB_PORT = 17999
PREFILL_S, STEP_S = 0.00005, 0.002  # for a prompt token that is not cached, for a step of decoding
VOCAB = 2048
WORDS = ("the", "cache", "holds", "keys", "and", "values", "of", "each", "token", "once")
BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
DEFAULT_PORTS = {"vllm": 8000, "sglang": 30000, "tensorrt_llm": 8000, "llama_cpp": 8080}
VERSIONS = {
    "vllm": "0.31.0",
    "sglang": "0.5.23",
    "tensorrt_llm": "1.3.0rc13",
    "llama_cpp": "b11277",
}
GATEWAYS = Path("/proc/net/route")


def log(text):
    print(text, file=sys.stderr, flush=True)


def hub_url():
    """Return the hub on the machine outside the container, which is the way to everywhere."""
    for line in GATEWAYS.read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == "00000000":
            address = socket.inet_ntoa(struct.pack("<L", int(fields[2], 16)))
            return f"http://{address}:{HUB_PORT}"
    return ""


def fetch(url, data=None):
    """Return the body of an answer; no proxy is used."""
    request = urllib.request.Request(url, data=data)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=20) as answer:
        return answer.read()


# Arguments


class Refused(Exception):
    """The engine's own parser would not take the arguments."""


def parse(arguments, flags):
    """Return the flags with their values, and the positional arguments.

    Args:
        arguments: The command line without the program.
        flags: The engine's flags: {"--port": {"values": 1, "choices": [...], "kind": "int"}}; `values` is a
            number, "?", "*" or "+".

    Raises:
        Refused: An unknown flag, or a value that the engine refuses.
    """
    given, places, rest = {}, [], list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or re.fullmatch(r"-\d.*", word):
            places.append(word)
            continue
        name, _, value = word.partition("=")
        if name not in flags and name.replace("_", "-") in flags:
            name = name.replace("_", "-")
        if name not in flags:
            raise Refused(f"unrecognized arguments: {word}")
        wanted = flags[name]
        values = [value] if value else []
        while not value and rest and not re.match(r"-[A-Za-z-]", rest[0]):
            if wanted["values"] in (0, "0") or (wanted["values"] in (1, "?") and values):
                break
            values.append(rest.pop(0))
        check(name, wanted, values)
        given[name] = values[0] if len(values) == 1 else values or True
    return given, places


def check(name, wanted, values):
    """Raise if a flag has no value that it needs, or one of the wrong kind."""
    if wanted["values"] in (1, "+") and not values:
        raise Refused(f"argument {name}: expected one argument")
    for value in values:
        if wanted.get("choices") and value not in wanted["choices"]:
            raise Refused(f"argument {name}: invalid choice: {value!r}")
        try:
            {"int": int, "float": float}.get(wanted.get("kind"), str)(value)
        except ValueError:
            raise Refused(f"argument {name}: invalid {wanted['kind']} value: {value!r}") from None


# The model


def download(model, offline):
    """Fetch a hub model into the cache as huggingface_hub does, and return its folder.

    Raises:
        SystemExit: The hub does not give it.
    """
    home = Path(os.environ.get("HF_HOME", "/root/.cache/huggingface")) / "hub"
    repository, _, quantisation = model.partition(":")
    folder = home / f"models--{repository.replace('/', '--')}"
    ref = folder / "refs" / "main"
    if ref.exists() and any((folder / "snapshots" / ref.read_text()).iterdir()):
        return folder / "snapshots" / ref.read_text()
    if offline:
        sys.exit(
            f"LocalEntryNotFoundError: Cannot find {model} in the cache, and HF_HUB_OFFLINE is set."
        )
    endpoint = os.environ.get("HF_ENDPOINT") or hub_url()
    try:
        about = json.loads(fetch(f"{endpoint}/api/models/{repository}"))
    except (OSError, urllib.error.URLError) as error:
        sys.exit(f"OSError: We couldn't connect to '{endpoint}' to load the files ({error}).")
    names = [entry["rfilename"] for entry in about["siblings"]]
    if quantisation:
        names = [name for name in names if quantisation.lower() in name.lower()]
    snapshot = folder / "snapshots" / about["sha"]
    snapshot.mkdir(parents=True, exist_ok=True)
    for name in names:
        data = fetch(f"{endpoint}/{repository}/resolve/main/{name}")
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(data)
        with contextlib.suppress(FileExistsError):
            (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    ref.parent.mkdir(exist_ok=True)
    ref.write_text(about["sha"])
    return snapshot


# Answers


def tokens_of(prompt):
    """Return token ids of a text, a list of ids or a list of messages."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        prompt = " ".join(str(message.get("content", "")) for message in prompt)
    if isinstance(prompt, list):
        return [int(token) for token in prompt]
    words = re.findall(r"\S+", str(prompt))
    return [int(hashlib.md5(word.encode()).hexdigest()[:6], 16) % VOCAB for word in words] or [0]


def instance(schema, number=0):
    """Return a value that a JSON schema allows."""
    if "enum" in schema:
        return schema["enum"][number % len(schema["enum"])]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type", "string")
    match kind if isinstance(kind, str) else kind[0]:
        case "object":
            return {name: instance(part) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [instance(schema.get("items", {}), n) for n in range(schema.get("minItems", 1))]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
    if "pattern" in schema:
        return matching(schema["pattern"])
    return "a" * max(1, schema.get("minLength", 1))


def matching(pattern):
    """Return a text that a regular expression matches: the first choice of each part."""
    from re import _parser as syntax

    def text(items):
        return "".join(one(kind, value) for kind, value in items)

    def one(kind, value):
        match str(kind):
            case "LITERAL":
                return chr(value)
            case "ANY":
                return "a"
            case "IN":
                return of_set(value)
            case "MAX_REPEAT" | "MIN_REPEAT":
                return text(value[2]) * max(value[0], 1 if value[1] else 0)
            case "SUBPATTERN":
                return text(value[3])
            case "BRANCH":
                return text(value[1][0])
            case "NOT_LITERAL":
                return "b" if value == ord("a") else "a"
        return ""

    def of_set(items):
        kind, value = items[0]
        match str(kind):
            case "LITERAL":
                return chr(value)
            case "RANGE":
                return chr(value[0])
            case "CATEGORY":
                return {"CATEGORY_DIGIT": "1", "CATEGORY_SPACE": " "}.get(str(value), "a")
        return next(c for c in "abcdefgh0123" if re.fullmatch(pattern_of(items), c))

    def pattern_of(items):
        return "[^" + "".join(re.escape(chr(v)) for k, v in items if str(k) == "LITERAL") + "]"

    return text(syntax.parse(pattern))


def constrained(body):
    """Return the text that a request's constraint asks for, or None."""
    wanted = body.get("response_format") or {}
    schema = (wanted.get("json_schema") or {}).get("schema") or body.get("json_schema")
    if isinstance(schema, str):
        schema = json.loads(schema)
    if schema:
        return json.dumps(instance(schema), separators=(",", ":"))
    if wanted.get("type") == "json_object":
        return "{}"
    structured = body.get("structured_outputs") or {}
    parameters = body.get("sampling_params") or {}
    if choices := structured.get("choice"):
        return choices[0]
    pattern = structured.get("regex") or body.get("regex") or parameters.get("regex")
    if parameters.get("json_schema"):
        return json.dumps(instance(json.loads(parameters["json_schema"])))
    return matching(pattern) if pattern else None


class Histogram:
    """Counts by upper bound."""

    def __init__(self):
        self.counts, self.total, self.sum = [0] * len(BOUNDS), 0, 0.0

    def add(self, value):
        self.total += 1
        self.sum += value
        for number, bound in enumerate(BOUNDS):
            self.counts[number] += value <= bound

    def lines(self, name):
        pairs = zip([*BOUNDS, "+Inf"], [*self.counts, self.total], strict=True)
        yield f"# TYPE {name} histogram"
        yield from (f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in pairs)
        yield f"{name}_sum {self.sum}"
        yield f"{name}_count {self.total}"


class Engine:
    """State that all requests share: who runs, who waits, which prefixes are cached."""

    def __init__(self, name, model, slots, context, block, cached, drafts):
        self.name, self.model, self.context, self.block = name, model, context, block
        self.cached, self.drafts = cached, drafts
        self.slots = threading.Semaphore(slots)
        self.lock, self.prefilling = threading.Lock(), threading.Lock()
        self.known = set()
        self.numbers = dict.fromkeys(
            ("running", "waiting", "hits", "queries", "prompt", "generated", "drafts"), 0
        )
        self.histograms = {key: Histogram() for key in ("ttft", "itl", "tpot", "e2e")}

    def add(self, **changes):
        with self.lock:
            for key, change in changes.items():
                self.numbers[key] += change

    def look_up(self, tokens):
        """Return how many tokens at the start of a prompt are cached, and cache all of them."""
        hits, state, intact = 0, 0, True
        with self.lock:
            for end in range(self.block, len(tokens) + 1, self.block):
                state = hash((state, *tokens[end - self.block : end]))
                intact = intact and self.cached and state in self.known and end < len(tokens)
                hits = end if intact else hits
                self.known.add(state)
        return hits

    def words(self, body, prompt):
        """Return the words of an answer, and why it ends."""
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or body.get("n_predict")
        parameters = body.get("sampling_params") or {}
        limit = int(limit or parameters.get("max_new_tokens") or 16)
        if (text := constrained(body)) is not None:
            words = re.findall(r"\s*\S+|\s+", text) or [""]
            return words[:limit], "length" if len(words) > limit else "stop"
        first = sum(prompt) % len(WORDS)
        if body.get("ignore_eos") or parameters.get("ignore_eos"):
            count = limit
        else:
            count = min(limit, 8 + sum(prompt) % 24)
        words = [WORDS[(first + n) % len(WORDS)] for n in range(count)]
        words = words[:1] + [f" {word}" for word in words[1:]]
        return words, "length" if count == limit else "stop"

    def answer(self, body, prompt):
        """Yield the words of an answer as they are computed; the first value is (usage, reason)."""
        began = time.monotonic()
        self.add(waiting=1)
        with self.slots:
            self.add(waiting=-1, running=1)
            try:
                hits = self.look_up(prompt)
                self.add(queries=len(prompt), hits=hits, prompt=len(prompt))
                with self.prefilling:
                    time.sleep(PREFILL_S * (len(prompt) - hits))
                words, reason = self.words(body, prompt)
                usage = {
                    "prompt_tokens": len(prompt),
                    "completion_tokens": len(words),
                    "total_tokens": len(prompt) + len(words),
                    "prompt_tokens_details": {"cached_tokens": hits},
                }
                yield usage, reason
                last = began
                for number, word in enumerate(words):
                    time.sleep(STEP_S)
                    now = time.monotonic()
                    self.add(generated=1, drafts=bool(self.drafts) and number % 2)
                    self.histograms["itl" if number else "ttft"].add(now - last)
                    last = now
                    yield word
                self.histograms["e2e"].add(last - began)
                self.histograms["tpot"].add((last - began) / max(1, len(words)))
            finally:
                self.add(running=-1)

    def metrics(self):
        """Return the Prometheus text under the engine's own names."""
        n, names = self.numbers, NAMES[self.name]
        values = {
            "running": n["running"],
            "waiting": n["waiting"],
            "kv_usage": min(1.0, 0.01 * n["running"]),
            "prefix_hits": n["hits"],
            "prefix_queries": n["queries"],
            "prefix_hit_rate": n["hits"] / n["queries"] if n["queries"] else 0.0,
            "prompt_tokens": n["prompt"],
            "generated_tokens": n["generated"],
            "preemptions": 0,
        }
        if self.drafts:
            values |= {"drafts": n["drafts"], "accepted_tokens": n["drafts"]}
            values["drafted_tokens"] = self.drafts * n["drafts"]
        lines = []
        for key, name in names.items():
            if key in self.histograms:
                lines += self.histograms[key].lines(name)
            elif key in values and name not in "\n".join(lines):
                kind = "counter" if name.endswith("_total") else "gauge"
                lines += [f"# TYPE {name} {kind}", f"{name} {values[key]}"]
        if self.name == "vllm":
            tokens = self.context * 4
            labels = f'num_gpu_blocks="{tokens // 16 + 1}",block_size="16",cache_dtype="auto"'
            lines += [
                "# TYPE vllm:cache_config_info gauge",
                f'vllm:cache_config_info{{{labels},kv_cache_size_tokens="{tokens}"}} 1',
            ]
        return "\n".join(lines) + "\n"


NAMES = {}  # engine to the schema's fields and its own metric names; of engine_flags.json


class Handler(BaseHTTPRequestHandler):
    """The endpoints of all engines."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def engine(self):
        return self.server.engine

    def log_message(self, *_):
        pass

    def send(self, value, status=200, kind="application/json"):
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        version = VERSIONS[self.engine.name]
        model = self.engine.model
        path = self.path.partition("?")[0]
        if path in ("/metrics", "/prometheus/metrics"):
            if self.engine.name == "tensorrt_llm" and path == "/metrics":
                return self.send([])
            return self.send(self.engine.metrics(), kind="text/plain; version=0.0.4")
        answers = {
            "/health": {"status": "ok"},
            "/health_generate": {},
            "/version": {"version": version},
            "/server_info": {"version": version, "model_path": model},
            "/get_model_info": {
                "model_path": model,
                "is_generation": True,
                "tokenizer_path": model,
            },
            "/model_info": {"model_path": model, "is_generation": True, "tokenizer_path": model},
            "/props": {"build_info": version, "total_slots": 4},
            "/v1/models": {"object": "list", "data": [{"id": model, "object": "model"}]},
            "/slots": [],
            "/flush_cache": {},
        }
        self.send(answers.get(path, {"error": "not found"}), 200 if path in answers else 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path = self.path.partition("?")[0]
        try:
            match path:
                case "/v1/chat/completions":
                    self.openai(body, tokens_of(body["messages"]), "message", "delta")
                case "/v1/completions":
                    self.openai(body, tokens_of(body["prompt"]), None, None)
                case "/tokenize":
                    self.send({"tokens": tokens_of(body.get("content") or body.get("prompt"))})
                case "/completion":
                    self.completion(body)
                case "/generate":
                    self.sglang(body)
                case "/flush_cache" | "/reset_prefix_cache":
                    self.engine.known.clear()
                    self.send("Cache flushed.\n", kind="text/plain")
                case _:
                    self.send({"error": {"message": f"no {path}"}}, 404)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def openai(self, body, prompt, whole, delta):
        if len(prompt) >= self.engine.context:
            message = f"maximum context length is {self.engine.context} tokens"
            return self.send({"error": {"message": message, "code": 400}}, 400)
        words = self.engine.answer(body, prompt)
        usage, reason = next(words)
        head = {"id": "stub", "object": "chunk", "created": 1, "model": body.get("model")}
        if not body.get("stream"):
            text = "".join(words)
            part = {"message": {"role": "assistant", "content": text}} if whole else {"text": text}
            choice = {"index": 0, **part, "finish_reason": reason}
            return self.send({**head, "choices": [choice], "usage": usage})
        self.begin_stream()
        for word in words:
            part = {"delta": {"content": word}} if delta else {"text": word}
            self.event({**head, "choices": [{"index": 0, **part, "finish_reason": None}]})
        part = {"delta": {}} if delta else {"text": ""}
        last = {**head, "choices": [{"index": 0, **part, "finish_reason": reason}]}
        if self.engine.name == "llama_cpp":
            last["timings"] = {
                "prompt_n": usage["prompt_tokens"],
                "prompt_ms": 1e3 * PREFILL_S * usage["prompt_tokens"],
                "predicted_n": usage["completion_tokens"],
                "predicted_ms": 1e3 * STEP_S * usage["completion_tokens"],
                "cache_n": usage["prompt_tokens_details"]["cached_tokens"],
            }
        self.event(last)
        if (body.get("stream_options") or {}).get("include_usage"):
            self.event({**head, "choices": [], "usage": usage})
        self.event("[DONE]")
        self.end_stream()

    def completion(self, body):
        """llama.cpp's own endpoint, with the probabilities of the likeliest tokens."""
        prompt = tokens_of(body["prompt"])
        usage, _ = next(words := self.engine.answer(body, prompt))
        text = "".join(words)
        best = sum(prompt) % VOCAB
        logprobs = [
            {"id": (best + n) % VOCAB, "token": "", "logprob": -0.7 - 0.01 * n}
            for n in range(min(int(body.get("n_probs") or 0), 64))
        ]
        probabilities = [{"id": best, "token": "", "logprob": -0.7, "top_logprobs": logprobs}]
        self.send({"content": text, "completion_probabilities": probabilities, "usage": usage})

    def sglang(self, body):
        """SGLang's own endpoint, which its language uses."""
        texts = body.get("text", "")
        replies = [
            self.reply(body, text) for text in (texts if isinstance(texts, list) else [texts])
        ]
        if body.get("stream"):
            self.begin_stream()
            self.event(replies[0])
            self.event("[DONE]")
            return self.end_stream()
        self.send(replies if isinstance(texts, list) else replies[0])

    def reply(self, body, text):
        prompt = tokens_of(text)
        words = self.engine.answer(body, prompt)
        usage, reason = next(words)
        meta = {
            "prompt_tokens": len(prompt),
            "completion_tokens": usage["completion_tokens"],
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "finish_reason": {"type": reason},
            "input_token_logprobs": [[-1.0, token, None] for token in prompt],
            "output_token_logprobs": [[-1.0, 0, None]],
            "id": "stub",
        }
        return {"text": "".join(words), "meta_info": meta}

    def begin_stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, value):
        data = f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end_stream(self):
        self.wfile.write(b"0\r\n\r\n")


class Server(ThreadingHTTPServer):
    """The engine's port."""

    request_queue_size = 512
    daemon_threads = True


def speak(name, given):
    """Write the lines of a start that the course reads."""
    if name == "llama_cpp":
        log("ggml_cuda_init: found 1 CUDA devices:")
        log("load_tensors: offloaded 37/37 layers to GPU")
        log("llama_kv_cache: size =   51.00 MiB (  2048 cells,  12 layers,  4/1 seqs)")
    if name == "vllm":
        log("(EngineCore pid=1) INFO [gpu_worker.py] Available KV cache memory: 1.0 GiB")


def first(given, *names, default=None):
    return next((given[name] for name in names if name in given), default)


def drafts_of(given):
    """Return the number of tokens that a draft has, 0 without speculation."""
    if config := given.get("--speculative-config"):
        return int(json.loads(config).get("num_speculative_tokens", 1))
    if "--speculative-algorithm" in given:
        return int(given.get("--speculative-num-steps", 3))
    return int(given.get("--spec-draft-n-max", 3)) if "--spec-type" in given else 0


def serve_ollama():
    """Serve Ollama's own API as the tests' server does, and the OpenAI-compatible one as for all engines."""
    sys.path.insert(0, str(Path(__file__).parent))
    import fake_ollama

    class Both(Handler, fake_ollama.Handler):
        def do_GET(self):
            (Handler if self.path.startswith("/v1/") else fake_ollama.Handler).do_GET(self)

        def do_POST(self):
            (Handler if self.path.startswith("/v1/") else fake_ollama.Handler).do_POST(self)

    server = Server(("0.0.0.0", 11434), Both)
    server.state = fake_ollama.FakeOllama()
    slots = int(os.environ.get("OLLAMA_NUM_PARALLEL", "1"))
    context = int(os.environ.get("OLLAMA_CONTEXT_LENGTH", "4096"))
    server.engine = Engine("ollama", "", slots, context, 1, True, 0)
    server.serve_forever()


def serve(name, arguments, record):
    """Check the arguments, load the model and serve it for ever."""
    if name != "llama_cpp":
        skipped = {"vllm": 2, "sglang": 3, "tensorrt_llm": 1}[name]
        arguments = arguments[skipped:]
    try:
        given, places = parse(arguments, record["flags"])
    except Refused as error:
        log(f"usage: {name} [options]\n{name}: error: {error}")
        sys.exit(2)
    if "NVIDIA_VISIBLE_DEVICES" not in os.environ:
        log("RuntimeError: Failed to infer device type: the container was given no GPU")
        sys.exit(1)
    model = first(given, "--model", "--model-path", "-hf", "-m", default=(places or [""])[0])
    offline = os.environ.get("HF_HUB_OFFLINE", "0") in ("1", "ON", "YES", "TRUE")
    if not Path(model).exists():
        download(model, offline)
    for other in ("--speculative-draft-model-path",):
        if other in given and not Path(given[other]).exists():
            download(given[other], offline)
    if config := given.get("--speculative-config"):
        heads = json.loads(config).get("model")
        if heads and not Path(heads).exists():
            download(heads, offline)
    speak(name, given)
    most = ("--max-num-seqs", "--max-running-requests", "--max_batch_size", "-np")
    slots = int(first(given, *most, default=8))
    longest = ("--max-model-len", "--context-length", "--max_seq_len", "-c")
    context = int(first(given, *longest, default=2048))
    if name == "llama_cpp":
        context //= slots
    off = ("--no-enable-prefix-caching", "--disable-radix-cache", "--no-cache-prompt")
    block = 16 if name == "vllm" else 1
    served = first(given, "--served-model-name", "--alias", default=model)
    engine = Engine(
        name, served, slots, context, block, not any(f in given for f in off), drafts_of(given)
    )
    port = int(given.get("--port", DEFAULT_PORTS[name]))
    server = Server((given.get("--host", "127.0.0.1"), port), Handler)
    server.engine = engine
    log(f"INFO: the rehearsal's stand-in of {name} is listening on port {port}")
    server.serve_forever()


def main(name, arguments):
    """Begin as the hub says."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    about = json.dumps({"engine": name, "arguments": arguments, "variables": sorted(os.environ)})
    told = json.loads(fetch(f"{hub_url()}/rehearsal/started", about.encode()))
    if told.get("log"):
        log(told["log"])
    if told.get("never_healthy"):
        while True:
            log("INFO [loader.py] Loading safetensors checkpoint shards")
            time.sleep(1)
    if "code" in told:
        sys.exit(told["code"])
    if name == "ollama":
        return serve_ollama()
    records = json.loads(Path(__file__).with_name("engine_flags.json").read_text())
    NAMES.update({engine: record["metrics"] for engine, record in records.items()})
    serve(name, arguments, records[name])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
