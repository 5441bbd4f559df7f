"""Text to vectors: an embedder is a sentence-transformers folder run by torch or OpenVINO, or a model behind an endpoint.

`load_embedder(settings)` loads the model named by `MILLRACE_EMBEDDER`, or, by `name`, the one that an index was made with:
any whose reference can still be fetched with the same weights. `identity`, `dimensions` and `tokenizer_of` tell about it
without loading weights. Writes nothing but the model cache. Fails with `ModelError` for what cannot be used or has changed,
`SettingsError` for settings that exclude each other, `ServiceUnavailable` for an endpoint that does not answer.

    folder.py           what a model's folder says
    identity.py         REFERENCE@DIGEST+PRECISION
    probe.py            backend and precision of this machine
    base.py             the protocol, and batches of local models
    torch_runner.py     openvino_runner.py     quantisation.py     the backends
    endpoint.py         openai:MODEL
"""

from typing import TYPE_CHECKING

from tasks.knowledge.embedders import identity as identities
from tasks.knowledge.embedders.base import Embedder, LocalEmbedder, Runner
from tasks.knowledge.embedders.folder import (
    NO_PROMPTS,
    Kind,
    dimensions_of,
    load_tokenizer,
    max_tokens,
    prompts_of,
    read_folder,
)
from tasks.knowledge.embedders.identity import API, OPENAI, EmbedderSpec
from tasks.knowledge.embedders.probe import backend_of, device
from tasks.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenizers import Tokenizer

__all__ = [
    "Embedder",
    "EmbedderSpec",
    "Kind",
    "dimensions",
    "identity",
    "load_embedder",
    "prompts",
    "tokenizer_digest",
    "tokenizer_of",
]


def load_embedder(
    settings: Settings, name: str | None = None, threads: int | None = None, reference: str | None = None
) -> Embedder:
    """Return the embedder of that identity; without one, the configured embedder, or that of `reference`.

    `threads` limits the CPU threads of this process (default: all cores): two processes with as many threads as
    cores spend twice the CPU time on the same work.
    """
    spec = identities.named(settings, name, reference) if name else identities.configured(settings, reference)
    if spec.precision == API:
        from tasks.knowledge.embedders.endpoint import EndpointEmbedder

        return EndpointEmbedder(settings, spec)
    folder = read_folder(identities.verified(settings, spec))
    runner: Runner
    if (spec.backend or backend_of(settings, spec.precision)) == "openvino":
        from tasks.knowledge.embedders.openvino_runner import OpenVinoRunner

        runner = OpenVinoRunner(folder, spec.digest, spec.precision, threads, settings.cache_dir)
    else:
        from tasks.knowledge.embedders.torch_runner import TorchRunner

        assert spec.precision != "int8"  # backend_of gives int8 to OpenVINO
        runner = TorchRunner(folder, spec.precision, threads, device())
    return LocalEmbedder(folder, spec.name, runner)


def identity(settings: Settings, reference: str | None = None, current: str | None = None) -> str:
    """Return `REFERENCE@DIGEST+PRECISION` of the configured embedder, or of another reference.

    `current` is the identity that the corpus is indexed with: the precision `auto` keeps that one's.
    """
    return identities.configured(settings, reference, current).name


def dimensions(settings: Settings, reference: str | None = None) -> int:
    """Return the length of the vectors; an endpoint is asked for it, once a process."""
    reference = reference or settings.embedder
    if reference.startswith(OPENAI):
        from tasks.knowledge.embedders.endpoint import EndpointEmbedder

        return EndpointEmbedder(settings, identities.configured(settings, reference)).dimensions
    return dimensions_of(identities.folder_of(settings, reference, weights=False))


def tokenizer_of(settings: Settings, reference: str | None = None) -> "tuple[Tokenizer, int]":
    """Return the embedder's tokenizer, and the most tokens of a document: its prompt's are taken off."""
    reference = reference or settings.embedder
    if reference.startswith(OPENAI):
        from tasks.knowledge.embedders.endpoint import tokenizer_of_endpoint

        return tokenizer_of_endpoint(settings)
    folder = identities.folder_of(settings, reference, weights=False)
    tokenizer = load_tokenizer(folder)
    prompt = tokenizer.encode(prompts_of(folder)["document"], add_special_tokens=False)
    return tokenizer, max_tokens(folder) - len(prompt.ids)


def tokenizer_digest(settings: Settings) -> str | None:
    """Return what pins the tokenizer of a configured endpoint, by which chunks are cut; None: the identity pins it."""
    if not settings.embedder.startswith(OPENAI):
        return None
    from tasks.knowledge.embedders.endpoint import digest_of_tokenizer

    return digest_of_tokenizer(settings)


def prompts(settings: Settings, name: str, reference: str | None = None) -> "Mapping[Kind, str]":
    """Return what the embedder of that identity puts before a text of each kind."""
    spec = identities.named(settings, name, reference)
    if spec.precision == API:
        return NO_PROMPTS
    return prompts_of(identities.folder_of(settings, spec.reference, weights=False))
