"""GRPO with TRL's own vLLM client, against a server that speaks vLLM's language and samples from the weights it gets.

TRL opens its client only with vLLM and CUDA, since weights go over NCCL. That one channel is replaced: what TRL would
send is loaded into the server's model, under the names that TRL gives. Requests, answers, log-probabilities, importance
ratios and our hooks are the real ones.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from model_training.models import end_token_ids, load_model, load_tokenizer, new_adapter
from model_training.stage import open_stage
from model_training.vllm_arguments import check_server
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import make_records, small_config
from utils.runs import read_metrics

REQUEST = {
    *("model", "prompt", "return_token_ids", "return_tokens_as_token_ids", "n", "repetition_penalty", "temperature"),
    *("top_p", "top_k", "min_p", "max_tokens", "logprobs", "stop_token_ids"),
}
"""Fields of vLLM 0.30's completion request that TRL fills, and ours."""


class Server:
    """Samples with a model of its own, into which `receive` puts weights; keeps the requests."""

    def __init__(self, model: Any) -> None:
        self.model, self.requests, self.received = model.eval(), [], 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def reply(self, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                assert self.path == "/health"
                self.reply({})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == "/reset_prefix_cache":
                    return self.reply({})
                assert self.path == "/v1/completions"
                return self.reply({"choices": server.complete(json.loads(body))})

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def complete(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        assert asked.keys() == REQUEST
        self.requests.append(asked)
        choices = []
        for prompt in asked["prompt"]:
            for _ in range(asked["n"]):
                ids, logprobs = list(prompt), []
                while len(logprobs) < asked["max_tokens"]:
                    with torch.inference_mode():
                        logits = self.model(torch.tensor([ids])).logits[0, -1] / asked["temperature"]
                    ids.append(int(torch.multinomial(logits.softmax(-1), 1)))
                    logprobs.append(float(logits.log_softmax(-1)[ids[-1]]))
                    if ids[-1] in asked["stop_token_ids"]:
                        break
                names = [f"token_id:{token}" for token in ids[len(prompt) :]]
                choices.append(
                    {
                        "prompt_token_ids": prompt,
                        "token_ids": ids[len(prompt) :],
                        "logprobs": {
                            "tokens": names,
                            "token_logprobs": logprobs,
                            "top_logprobs": [{name: value} for name, value in zip(names, logprobs, strict=True)],
                        },
                    }
                )
        return choices

    def receive(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """What vLLM's `load_weights` does, one at a time: TRL takes the adapter out again behind the last one."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                own.pop(name).copy_(weight)
        assert not own
        self.received += 1


@pytest.fixture
def server(tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from trl.generation.vllm_client import VLLMClient
    from trl.generation.vllm_generation import VLLMGeneration

    started = Server(load_model(str(tiny_model("llama"))))

    class Client(VLLMClient):  # type: ignore[misc]
        def __init__(self, base_url: str) -> None:
            self.session, self.base_url, self.model = requests.Session(), base_url, "org/m"

        def update_named_params(self, metadata: Any, named_params: Iterator[tuple[str, torch.Tensor]]) -> None:
            started.receive(named_params)

    def init(self: Any) -> None:
        assert self.mode == "server"
        self.vllm_client = Client(self.server_base_url)

    monkeypatch.setattr(VLLMGeneration, "_init_vllm", init)
    yield started
    started.http.shutdown()
    started.http.server_close()


@pytest.mark.parametrize("credit", ["segment", "completion"])
def test_a_server_samples_from_the_weights_that_are_trained(
    credit: str, server: Server, tiny_model: BuildModel, tmp_path: Path
) -> None:
    from model_training.grpo import make_grpo_trainer
    from model_training.logs import Interrupt, RunLog
    from model_training.rewards import resolve

    folder = str(tiny_model("llama"))
    config = small_config(
        tmp_path,
        Path(folder),
        credit=credit,
        engine="vllm",
        vllm_mode="server",
        vllm_server_base_url=server.url,
        learning_rate=0.05,
        max_steps=3,
    )
    check_server(config)
    records = json.loads(make_records(tmp_path / "data.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(folder)
    model = new_adapter(load_model(folder), 4, 0)
    ends = end_token_ids(model, tokenizer)
    before = {name: weight.detach().clone() for name, weight in server.model.named_parameters()}
    run = open_stage("secret", config, config.dataset_path)
    log = RunLog(run, "grpo", 0, 3, 8, Interrupt(), is_writer=True)
    rewards = resolve(["format", "tests.model_training.tiny_models:letters_reward"], None)
    trainer = make_grpo_trainer(model, tokenizer, records, rewards, config, tmp_path / "checkpoints", log)
    trainer.train()

    assert server.received == len(server.requests) == 3, "each step samples, with the weights of that step"
    for asked in server.requests:
        assert (asked["n"], asked["max_tokens"], asked["temperature"]) == (4, 16, 1.0)
        assert (asked["top_p"], asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
        assert asked["stop_token_ids"] == ends and len(ends) > 1, "the turn's end, too, which vLLM would not know"
        assert tokenizer.decode(asked["prompt"][0]).endswith("<|im_start|>assistant\n"), "our chat text"
    moved = [name for name, weight in server.model.named_parameters() if not torch.equal(weight, before[name])]
    assert moved and all("_proj" in name for name in moved), "the adapter came, merged, and nothing else"
    rows = [row for row in read_metrics(run) if row["split"] == "grpo"]
    assert len(rows) == 3
    for row in rows:
        assert row["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4), "the same distribution"
        assert row["rewards/letters_reward/mean"] > 0
