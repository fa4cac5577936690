"""A real HTTP server that speaks as vLLM and SGLang do, and misbehaves on request.

What it samples from is `draw(prompt, asked) -> Drawn`: a table, or a model's logits through NumPy.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import socket
import struct
import threading
import time
from typing import NamedTuple

import numpy as np

MODEL = "toy/model"


class Drawn(NamedTuple):
    tokens: list
    raw: list  # log-probabilities before temperature and filters
    tempered: list
    processed: list


class Asked(NamedTuple):
    """The decoding parameters of a request, in one vocabulary."""

    prompt: list
    seed: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    most: int
    stop: tuple


def table(tokens, logp):
    """Always the same completion."""
    return lambda asked: Drawn(list(tokens), list(logp), list(logp), list(logp))


def numpy_model(logits, uniform):
    """Draws from `logits(tokens) -> [V]` in float64 with `uniform(seed, position)`."""

    def draw(asked):
        tokens, raw, tempered, processed = [], [], [], []
        for position in range(asked.most):
            x = np.asarray(logits(asked.prompt + tokens), np.float64)
            greedy = asked.temperature == 0
            own, scaled = _log_softmax(x), _log_softmax(x / (1 if greedy else asked.temperature))
            kept = scaled if greedy else _filtered(scaled, asked)
            if greedy:
                token = int(np.argmax(x))
            else:
                running = np.cumsum(np.exp(kept))
                token = int(np.argmax(running > uniform(asked.seed, position) * running[-1]))
            tokens.append(token)
            for column, values in ((raw, own), (tempered, scaled), (processed, kept)):
                column.append(float(values[token]))
            if token in asked.stop:
                break
        return Drawn(tokens, raw, tempered, processed)

    return draw


def _log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def _filtered(logp, asked):
    """Top-k, then top-p of what is left, then min-p: the order of `polopt.rollout.draw`."""
    order = np.argsort(-logp)
    p = np.exp(logp[order])
    if asked.top_k > 0:
        p[asked.top_k :] = 0
    before = np.cumsum(p) - p
    p[before >= asked.top_p * p.sum()] = 0
    p[p < asked.min_p * p[0]] = 0
    out = np.full(len(logp), -np.inf)
    with np.errstate(divide="ignore"):
        out[order] = np.log(p / p.sum())
    return out


# ---------------------------------------------------------------- misbehaviour


def status(code, body="", **headers):
    def play(handler, answer):
        handler.reply(code, body.encode(), **headers)

    return play


def edited(change):
    """The right answer, but for what `change` does to it."""

    def play(handler, answer):
        answer = json.loads(json.dumps(answer))
        changed = change(answer)
        handler.reply(200, json.dumps(answer if changed is None else changed).encode())

    return play


def text(body):
    return lambda handler, answer: handler.reply(200, body)


def hang(handler, answer):
    handler.server.engine.over.wait(10)


def drip(handler, answer):
    """A byte every 50 ms, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not handler.server.engine.over.wait(0.05):
        handler.wfile.write(b" ")


def drip_headers(handler, answer):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not handler.server.engine.over.wait(0.05):
        handler.wfile.write(b"x")


def truncated(handler, answer):
    body = json.dumps(answer).encode()
    handler.reply(200, body[: len(body) // 2], **{"Content-Length": str(len(body))})
    handler.close_connection = True


def reset(handler, answer):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def die(handler, answer):
    """The process is gone: nobody listens, and this connection ends without a word."""
    handler.server.socket.close()
    reset(handler, answer)


# ---------------------------------------------------------------- the server


class Engine:
    """What a server does and has seen; `script` is what it plays instead of the right answers."""

    def __init__(self, draw, owner="vllm", reports=None):
        self.draw, self.owner = draw, owner
        self.reports = reports or {"vllm": "raw", "sglang": "tempered"}[owner]
        self.script, self.version, self.models = [], "default", [MODEL]
        self.seen, self.headers, self.connections, self.peak = [], [], 0, 0
        self.under_way, self.lock, self.over = 0, threading.Lock(), threading.Event()
        self.pace = 0.0

    @contextlib.contextmanager
    def listening(self):
        server = _Server(("127.0.0.1", 0), _Handler)
        server.engine = self
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            self.over.set()
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, path, body):
        if path == "/v1/completions" and self.owner == "vllm":
            return self._vllm(body)
        if path == "/generate" and self.owner == "sglang":
            return self._sglang(body)
        return {"ok": True}

    def models_list(self):
        cards = [{"id": x, "owned_by": self.owner, "max_model_len": 32} for x in self.models]
        return {"object": "list", "data": cards}

    def _vllm(self, body):
        keys = ("prompt", "seed", "temperature", "top_p", "top_k", "min_p", "max_tokens")
        asked = Asked(*(body[k] for k in keys), tuple(body["stop_token_ids"]))
        drawn = self.draw(asked)
        stopped = drawn.tokens[-1] in asked.stop
        named = [f"token_id:{t}" for t in drawn.tokens]
        choice = {
            "index": 0,
            "text": "…",
            "finish_reason": "stop" if stopped else "length",
            "stop_reason": drawn.tokens[-1] if stopped else None,
            "logprobs": {"tokens": named, "token_logprobs": getattr(drawn, self.reports)},
            "token_ids": drawn.tokens,
            "prompt_token_ids": asked.prompt,
        }
        return {"id": "cmpl-0", "model": MODEL, "choices": [choice]}

    def _sglang(self, body):
        how = body["sampling_params"]
        keys = ("sampling_seed", "temperature", "top_p", "top_k", "min_p", "max_new_tokens")
        asked = Asked(body["input_ids"], *(how[k] for k in keys), tuple(how["stop_token_ids"]))
        drawn = self.draw(asked)
        stopped = drawn.tokens[-1] in asked.stop
        logp = getattr(drawn, self.reports)
        meta = {
            "finish_reason": {"type": "stop", "matched": drawn.tokens[-1]}
            if stopped
            else {"type": "length", "length": asked.most},
            "prompt_tokens": len(asked.prompt),
            "weight_version": self.version,
            "output_token_logprobs": [
                [x, t, None] for x, t in zip(logp, drawn.tokens, strict=True)
            ],
        }
        if body.get("return_sampling_mask"):
            meta["output_token_sampling_logprobs"] = drawn.processed
        return {"text": "…", "output_ids": drawn.tokens, "meta_info": meta}


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        with self.server.engine.lock:
            self.server.engine.connections += 1

    def do_GET(self):
        self._play(self.server.engine.models_list())

    def do_POST(self):
        engine = self.server.engine
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(sent) if sent else None
        with engine.lock:
            engine.seen.append((self.path, body))
            engine.headers.append(dict(self.headers))
            engine.under_way += 1
            engine.peak = max(engine.peak, engine.under_way)
        try:
            time.sleep(engine.pace)
            self._play(engine.answer(self.path, body))
        finally:
            with engine.lock:
                engine.under_way -= 1

    def _play(self, answer):
        with self.server.engine.lock:
            script = self.server.engine.script
            play = script.pop(0) if script else None
        if play is None:
            self.reply(200, json.dumps(answer).encode())
        else:
            play(self, answer)

    def reply(self, code, body, **headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing is printed."""


NAN = math.nan
