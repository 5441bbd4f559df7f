"""A release of the ledger, loaded: its prompt, embedder, reranker, base model and adapter.

Before anything is fetched the release's signature is proven (`tasks.release.signing`), where MILLRACE_VERIFY_KEY is set. Reads the
prompt text kept in the ledger, the row of the index version, the embedder (which is asked once), the reranker, and base model and
adapter (by digest), shared with the release that answers where both have them in common. The model is in this process, or on the
server of MILLRACE_GENERATION_URL. Writes only below the cache folder, and below the folder of adapters that a model server reads.
Fails with `SignatureError`, `ReleaseError`, `ModelError`, `SettingsError` or `ServiceUnavailable`.
"""

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.database import Connection
from tasks.errors import ReleaseError
from tasks.knowledge.corpora import DEFAULT, settings_of
from tasks.release import ledger, signing
from tasks.release.signing_keys import verify_keys
from tasks.serving.adapters import adapters_folder, fetch_adapter
from tasks.serving.base_files import differing
from tasks.serving.connection import KeptConnection
from tasks.serving.language_model import LanguageModel
from tasks.serving.prompt import Prompt, parse_prompt
from tasks.serving.transformers_model import load_base
from tasks.serving.upstream import connect_base
from tasks.settings import Settings
from tasks.storage import Storage

if TYPE_CHECKING:
    from tasks.knowledge.embedders import Embedder
    from tasks.knowledge.reranker import Reranker

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Loaded:
    """A release in memory. `users` counts the requests that answer with it."""

    release: ledger.Release
    prompt: Prompt
    embedder: "Embedder"
    model: LanguageModel
    adapter: str | None
    reranker: "Reranker | None" = None
    users: int = field(default=0, compare=False)


class Loader:
    """Loads releases. Keeps nothing but their number."""

    def __init__(self, settings: Settings, connection: KeptConnection, *, threads: int) -> None:
        self._settings, self._connection, self._threads = settings, connection, threads
        self._loads = itertools.count(1)
        self._keys = verify_keys(settings)
        if not self._keys:
            log.warning("signatures are not checked: MILLRACE_VERIFY_KEY is not set (docs/signing.md)")

    @property
    def checks_signatures(self) -> bool:
        """Whether a release has to be signed to be loaded."""
        return bool(self._keys)

    def load(self, release: ledger.Release, beside: Loaded | None) -> Loaded:
        """Return a release with all it needs, sharing what it has in common with `beside`."""
        signed = self._proven(release)
        prompt = parse_prompt(release.prompt, f"the prompt of release {release.release}")
        if prompt.sha256 != release.prompt_sha256:
            raise ReleaseError(
                f"expected a prompt with sha256 {release.prompt_sha256}, found {prompt.sha256}. Next: release again."
            )
        self._connection.run(lambda connection: _check_index(connection, release))
        embedder, reranker = self._embedder(release, beside), self._reranker(beside)
        adapter, folder = None, None
        if release.adapter_uri is not None and release.adapter_sha256 is not None:
            storage = Storage(self._settings.s3_endpoint_url)
            folder = fetch_adapter(
                storage, release.adapter_uri, release.adapter_sha256, adapters_folder(self._settings)
            )
        model = self._base(release, beside, signed)
        if folder is not None:
            # Named by release and load, not by digest: what leaves may then drop its own without asking.
            adapter = f"release_{release.release}_{next(self._loads)}"
            try:
                model.attach(adapter, folder)
            except BaseException:
                if beside is None or model is not beside.model:
                    model.close()
                raise
        return Loaded(release, prompt, embedder, model, adapter, reranker)

    def _proven(self, release: ledger.Release) -> Mapping[str, str] | None:
        """Return the signed digests of the release's weights by file, or None without a key. Raises SignatureError."""
        if not self._keys:
            return None
        known = self._connection.run(lambda connection: signing.recorded(connection, release))
        weights = signing.check(self._keys, Storage(self._settings.s3_endpoint_url), release, known)
        return {name: artifact.sha256 for name, artifact in weights.files.items()}

    def _base(self, release: ledger.Release, beside: Loaded | None, signed: Mapping[str, str] | None) -> LanguageModel:
        # The signed files are the base model's where the whole of it was trained, else the adapter's (proven by its digest).
        files = signed if release.adapter_sha256 is None else None
        if beside is not None:
            model = beside.model
            same = (model.reference, model.base_revision) == (release.base_model, release.base_revision)
            # It may have been loaded for an adapter, whose release says nothing of configuration and tokenizer.
            if same and (files is None or not differing(model.files, files)):
                return model
        if self._settings.generation_url is not None:
            return connect_base(release.base_model, release.base_revision, self._settings, files)
        cache, endpoint = Path(self._settings.cache_dir), self._settings.s3_endpoint_url
        return load_base(release.base_model, release.base_revision, cache, endpoint, self._threads, files)

    def _embedder(self, release: ledger.Release, beside: Loaded | None) -> "Embedder":
        if beside is not None and beside.embedder.name == release.embedder:
            return beside.embedder
        from tasks.knowledge.embedders import load_embedder

        embedder = load_embedder(self._settings, release.embedder)
        # An endpoint that refuses us is found out before anybody asks.
        embedder.encode(["Is anybody there?"], kind="query")
        return embedder

    def _reranker(self, beside: Loaded | None) -> "Reranker | None":
        """Return the cross-encoder of the corpus that is searched, its weights loaded; the settings name one, or none."""
        if beside is not None:
            return beside.reranker
        own = settings_of(self._settings, DEFAULT)
        if own.reranker is None:
            return None
        from tasks.knowledge.reranker import load_reranker

        reranker = load_reranker(own)
        reranker.load()
        return reranker


def _check_index(connection: Connection, release: ledger.Release) -> None:
    row = connection.execute(
        "SELECT embedder, to_regclass(table_name) IS NOT NULL AS stands FROM index_versions WHERE version = %s",
        (release.index_version,),
    ).fetchone()
    if row is None or not row["stands"]:
        raise ReleaseError(
            f"expected index version {release.index_version} to be there, found none. Next: release a newer index."
        )
    if row["embedder"] != release.embedder:
        raise ReleaseError(
            f"expected index version {release.index_version} made by {release.embedder}, found {row['embedder']}. "
            "Next: release the index with the embedder it was made by."
        )
