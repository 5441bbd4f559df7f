"""A tiny Llama with its tokenizer, LoRA adapters for it, a hand-written embedder, and an assistant made of them."""

import asyncio
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from tasks.release.ledger import Release
from tasks.serving.answering import Assistant
from tasks.serving.api import create_app
from tasks.serving.connection import KeptConnection
from tasks.serving.feedback import FeedbackBox
from tasks.serving.language_model import LanguageModel
from tasks.serving.prompt import parse_prompt, prompt_digest
from tasks.serving.releases import Loaded, Releases
from tasks.serving.request_log import RequestLog
from tasks.serving.transformers_model import TransformersModel
from tasks.settings import Settings, load_settings

PROMPT = (
    "---\nname: test\nversion: 1\ndocuments: 2\ncontext_tokens: 64\nsystem: Be short.\n---\n{context}\nQ: {question}\n"
)
NOWHERE = "postgresql://nobody:nothing@127.0.0.1:9/none"  # the discard port: connections are refused at once
SENTENCE = "the for while loop list with a statement runs else clause when it ends return value of function question"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Chunk:
    """What `tasks.knowledge.search` gives for a chunk."""

    chunk_id: str
    document_uri: str
    title: str
    text: str
    ordinal: int
    score: float
    start: int = 0
    end: int = 9
    headings: tuple[str, ...] = ("Statements",)
    page: int | None = None
    last_page: int | None = None
    parts: Mapping[str, float] = field(default_factory=lambda: {"vector_rank": 1}, hash=False)
    index_version: int = 1


class WordEmbedder:
    """Vectors of hashed words: equal texts have equal vectors, texts that share words are near."""

    name = "test:words@1"
    dimensions = 32
    truncated = 0

    def encode(self, texts: Sequence[str], kind: str = "document") -> Any:
        """Return one normalised vector a text."""
        vectors = np.full((len(texts), self.dimensions), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, int(hashlib.sha256(word.encode()).hexdigest(), 16) % self.dimensions] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def save_tiny_llama(folder: Path) -> Path:
    """Write a Llama of two layers, and a byte-level tokenizer with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([SENTENCE] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"bos_token": "<|im_start|>"})
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=fast.eos_token_id, bos_token_id=1,
        pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny_lora(base: Path, folder: Path, seed: int) -> Path:
    """Write a LoRA adapter whose matrices are random, so that it changes what the base model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny base model."""
    return save_tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tiny_loras(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two adapters for it."""
    return [save_tiny_lora(tiny_llama, tmp_path_factory.mktemp("lora"), seed) for seed in (1, 2)]


@pytest.fixture
def model(tiny_llama: Path) -> Iterator[LanguageModel]:
    """The tiny base model, loaded."""
    loaded = TransformersModel("test:tiny", "0", tiny_llama, threads=1)
    yield loaded
    loaded.close()


def make_release(number: int = 1, prompt: str = PROMPT, **changed: Any) -> Release:
    """Return a row of the ledger that nobody wrote there."""
    release = Release(
        release=number, created_at=datetime.now(UTC), kind="promotion", model_name="tiny", model_version="1",
        adapter_uri=None, adapter_sha256=None, base_model="test:tiny", base_revision="0",
        prompt_sha256=prompt_digest(prompt), prompt=prompt, index_version=1, embedder=WordEmbedder.name,
        dataset_sha256=None, code_revision="test", evidence_uri="s3://none/none", evidence_sha256="0" * 64,
        approved_by="test", reason="test", run=f"test-{number}", restores=None,
    )  # fmt: skip
    return replace(release, **changed)


CHUNKS = [
    Chunk("1", "pydoc:topics/for", "The for statement", "the for statement runs a loop with a list", 0, 0.0),
    Chunk("2", "pydoc:topics/while", "The while statement", "the while loop runs the else clause when it ends", 0, 0.0),
    Chunk("3", "pydoc:topics/return", "The return statement", "return the value of a function", 0, 0.0),
]


def find_in_memory(loaded: Loaded, question: str, vector: Any, k: int) -> list[Chunk]:
    """Search CHUNKS exactly."""
    vectors = WordEmbedder().encode([chunk.text for chunk in CHUNKS])
    scored = [replace(chunk, score=float(score)) for chunk, score in zip(CHUNKS, vectors @ vector, strict=True)]
    return sorted(scored, key=lambda chunk: -chunk.score)[:k]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose database is not there."""
    return load_settings(
        {
            "MILLRACE_DATABASE_URL": NOWHERE,
            "MILLRACE_MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
            "MILLRACE_CACHE_DIR": str(tmp_path / "cache"),
        }
    )


@pytest.fixture
def requests(tmp_path: Path) -> Iterator[RequestLog]:
    """A request log whose database is not there."""
    log = RequestLog(KeptConnection(NOWHERE), tmp_path / "requests")
    yield log
    log.close()


@pytest.fixture
def assistant(settings: Settings, requests: RequestLog) -> Iterator[Assistant]:
    """An assistant without a release."""
    made = Assistant(Releases(settings, KeptConnection(NOWHERE), threads=1), requests, find_in_memory)
    yield made
    made.close()


@pytest.fixture
def ready(assistant: Assistant, model: LanguageModel) -> Assistant:
    """The assistant with the tiny base model live."""
    release = make_release()
    prompt = parse_prompt(release.prompt, "test")
    assistant.releases.put_live(Loaded(release, prompt, WordEmbedder(), model, None))  # type: ignore[arg-type]
    return assistant


def app_of(assistant: Assistant, **options: Any) -> FastAPI:
    """Return the application around `assistant`, its feedback going nowhere."""
    return create_app(assistant, FeedbackBox(KeptConnection(NOWHERE), assistant.requests), **options)


def client_of(app: FastAPI, url: str = "http://127.0.0.1") -> httpx.AsyncClient:
    """Return a client that calls `app` in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url=url)


def call(app: FastAPI, method: str, path: str, url: str = "http://127.0.0.1", **options: Any) -> httpx.Response:
    """Send one request to `app`."""

    async def send() -> httpx.Response:
        async with client_of(app, url) as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())
