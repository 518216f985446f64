"""Settings: the environment, read once, at the edge; everything below is handed what it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.search_strategy import Strategy, strategy_settings
from amprenta_vectors.shown import is_address


def _ours(name: str, default: Any, **constraints: Any) -> Any:
    """Return a setting whose field is ``name`` and whose variable is ``AMPRENTA_NAME``."""
    return Field(default, validation_alias=f"AMPRENTA_{name.upper()}", **constraints)


def normalize_namespace(name: str) -> str:
    """Return ``name``, or ``""`` for Pinecone's default namespace, which also goes by ``"__default__"``."""
    return "" if name == "__default__" else name


def _to_threshold(value: Any) -> Any:
    if value is None or value == "off":
        return None
    try:
        if float(value) >= 0:
            return value
    except ValueError:
        pass
    raise ValueError("expected a number that is not negative, or off")


Threshold = Annotated[float | None, BeforeValidator(_to_threshold)]
"""A number, or ``off``, which is None."""


def _to_limit(value: Any) -> Any:
    threshold = _to_threshold(value)
    return threshold if threshold is not None and float(threshold) > 0 else None


Limit = Annotated[float | None, BeforeValidator(_to_limit)]
"""A number above 0; ``off`` and 0 are None."""


LongTexts = Literal["refuse", "cut", "chunk"]
EmbedderName = Literal[
    "wordllama", "wordllama-128", "wordllama-64", "gemini", "ollama", "openai", "sentence_transformers"
]

LIST_PER_SECOND = 200.0
FETCH_PER_SECOND = 100.0
"""Requests that Pinecone takes of one index (https://docs.pinecone.io/reference/api/database-limits/rate-limits)."""


class _Group(BaseModel):
    """Settings that belong together and are handed on together."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, extra="ignore")


class SourceLimits(_Group):
    """The limits on what a run asks of its source; None is no limit.

    ``max_read_units`` and ``max_cost`` are for a whole run, retries included. ``token_price`` is that of a million
    tokens of the embedder, in the currency of ``max_cost``.
    """

    list_per_second: Limit = _ours("list_per_second", LIST_PER_SECOND)
    fetch_per_second: Limit = _ours("fetch_per_second", FETCH_PER_SECOND)
    read_units_per_second: Limit = _ours("read_units_per_second", None)
    max_read_units: Annotated[int | None, BeforeValidator(_to_limit)] = _ours("max_read_units", None)
    tokens_per_second: Limit = _ours("tokens_per_second", None)
    token_price: Limit = _ours("token_price", None)
    max_cost: Limit = _ours("max_cost", None)

    def of(self, kind: Literal["list", "fetch", "read_units", "tokens"]) -> float | None:
        """Return the limit a second of one kind; None is no limit."""
        limit: float | None = getattr(self, f"{kind}_per_second")
        return limit

    def most(self, unit: Literal["read_units", "tokens"]) -> int | None:
        """Return how many units a run may be charged for in all. Raises `ConfigError` for a cost without a price."""
        if unit == "read_units":
            return self.max_read_units
        if self.max_cost is None:
            return None
        if self.token_price is None:
            raise ConfigError(
                f"the cost is limited to {self.max_cost:,.10g} (AMPRENTA_MAX_COST), and no price of tokens is set",
                hint="export AMPRENTA_TOKEN_PRICE=… with the price of a million tokens, or AMPRENTA_MAX_COST=off",
            )
        return int(self.max_cost / self.token_price * 1_000_000)

    def under(self, ordered: Mapping[str, Any]) -> Self:
        """Return these limits, replaced by those ``ordered`` of the run: 0 there is no limit, null is not set."""
        ours = type(self).model_fields
        return self.model_copy(
            update={name: value or None for name, value in ordered.items() if name in ours and value is not None}
        )


class Thresholds(_Group):
    """The values above which a run throttles, waiting for its database; None is never checked (docs/throttling.md)."""

    max_replica_lag_seconds: Threshold = _ours("max_replica_lag_seconds", 30.0)
    max_lock_waiters: Threshold = _ours("max_lock_waiters", 5.0)
    max_active_sessions: Threshold = _ours("max_active_sessions", None)
    max_wal_mb_per_second: Threshold = _ours("max_wal_mb_per_second", None)
    max_unarchived_segments: Threshold = _ours("max_unarchived_segments", 128.0)
    autovacuum_wait_seconds: Threshold = _ours("autovacuum_wait_seconds", None)
    max_snapshot_seconds: Threshold = _ours("max_snapshot_seconds", None)
    throttle_sql: str | None = _ours("throttle_sql", None)


_GROUPS: Mapping[str, type[_Group]] = {"source_limits": SourceLimits, "thresholds": Thresholds}


class _Environment(PydanticBaseSettingsSource):
    """The environment: a variable for each setting, also for each of a group, and its text is the value.

    The library's own source looks at every reading whether a type may be written as JSON: 4 ms, where this takes 0.1.
    """

    def __init__(self, settings_cls: type[BaseSettings], variables: Mapping[str, str | None]) -> None:
        super().__init__(settings_cls)
        self._variables = variables

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return what is set for a field, and the name that it is read by; of a group, the variables that are set."""
        group = _GROUPS.get(field_name)
        if group is None:
            alias = _alias(self.settings_cls, field_name)
            return self._variables.get(alias.lower()), alias, False
        aliases = [_alias(group, name) for name in group.model_fields]
        found = {alias: self._variables.get(alias.lower()) for alias in aliases}
        return {alias: value for alias, value in found.items() if value is not None}, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return what is set."""
        found = [self.get_field_value(field, name) for name, field in self.settings_cls.model_fields.items()]
        return {key: value for value, key, _ in found if value is not None}


class Settings(BaseSettings):
    """Everything that can be set. A field's variable is its name in capitals; the engine's own begin ``AMPRENTA_``."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    database_url: SecretStr | None = None
    migration_database_url: SecretStr | None = None
    read_database_url: SecretStr | None = None
    postgres_host: str | None = None
    postgres_port: int = 5432
    postgres_db: str = "postgres"
    postgres_user: str = "postgres"
    postgres_password: SecretStr | None = None
    postgres_sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = None
    postgres_sslrootcert: str | None = None
    postgres_sslcert: str | None = None
    postgres_sslkey: str | None = None

    pinecone_api_key: SecretStr | None = None
    pinecone_index_name: str | None = None
    namespace: str = Field("", validation_alias="PINECONE_NAMESPACE")
    pinecone_controller_host: str | None = None
    pinecone_transport: Literal["auto", "grpc", "rest"] = "auto"
    pinecone_vector_field: str | None = None
    pinecone_grpc_host: str | None = None

    vector_backend: str = "pinecone"
    vector_mode: Literal["single", "dual", "fallback", "hybrid", "shadow"] = "single"
    vector_secondary: str | None = None
    vector_timeout_seconds: float = Field(2.0, gt=0)
    vector_hybrid_join: Literal["union", "intersection"] = "union"
    pinecone_similarity_threshold: float | None = None
    pgvector_similarity_threshold: float | None = None
    simple_similarity_threshold: float | None = None
    chroma_similarity_threshold: float | None = None
    use_pgvector: bool | None = None
    product_search_strategy: Strategy | None = None
    vector_dimension: int | None = Field(None, ge=1, le=16000)
    embedding_model: str | None = None

    google_api_key: SecretStr | None = None
    gemini_api_key: SecretStr | None = None
    google_gemini_base_url: str | None = None
    openai_api_key: SecretStr | None = None
    openai_base_url: str | None = None
    openai_embedding_model: str = "text-embedding-3-small"
    ollama_host: str | None = None
    ollama_api_model_embedding: str = "nomic-embed-text"
    sentence_transformers_model: str = "sentence-transformers/all-MiniLM-L6-v2"

    langsmith_tracing: bool = False
    langsmith_api_key: SecretStr | None = None
    langsmith_project: str | None = None
    langsmith_endpoint: str | None = None

    simple_store_root: Path = Path("user_data")
    vector_store_encryption_key: SecretStr | None = None
    vector_store_user_id: str | None = None

    chroma_path: Path = Path("data/vector_db")
    chroma_host: str | None = None
    chroma_port: int = Field(8000, ge=1, le=65535)
    chroma_ssl: bool = False
    chroma_collection: str = "products_all_products"

    table: str = _ours("table", "rag_chunks")
    config: Path | None = _ours("config", None)
    source: Literal["pinecone", "simple", "chroma", "rows", "column"] | None = _ours("source", None)
    dimension: int | None = _ours("dimension", None, ge=1, le=16000)
    text_field: str = _ours("text_field", "text")
    batch_size: int = _ours("batch_size", 1000, ge=1, le=100_000)
    batch_seconds: Limit = _ours("batch_seconds", 2.0)
    workers: int = _ours("workers", 5, ge=1, le=256)
    pool_size: int = _ours("pool_size", 5, ge=1)
    shadow_model: str | None = _ours("shadow_model", None)
    query_timeout_seconds: float | None = _ours("query_timeout_seconds", None, gt=0)
    read_max_lag_seconds: float = _ours("read_max_lag_seconds", 10.0, ge=2)
    ef_search: int | None = _ours("ef_search", None, ge=1, le=1000)
    probes: int | None = _ours("probes", None, ge=1, le=32768)
    oversampling: int | None = _ours("oversampling", None, ge=1, le=10_000)
    max_bad_share: float = _ours("max_bad_share", 0.05, ge=0, le=1)
    nul: Literal["quarantine", "strip"] = _ours("nul", "quarantine")
    embedder: EmbedderName | None = _ours("embedder", None)
    text_characters: int | None = _ours("text_characters", None, ge=1)
    long_texts: LongTexts = _ours("long_texts", "refuse")
    lease_seconds: float = _ours("lease_seconds", 15.0, gt=0)
    retry_seconds: float = _ours("retry_seconds", 600.0, ge=0)
    drain_seconds: float = _ours("drain_seconds", 10.0, ge=0)
    poll_seconds: float = _ours("poll_seconds", 0.5, gt=0, le=0.5)
    maintenance_work_mem: str | None = _ours("maintenance_work_mem", None, pattern=r"^\d+ ?(kB|MB|GB|TB)$")
    index_workers: int | None = _ours("index_workers", None, ge=0, le=1024)
    migration_lock_timeout: float = _ours("migration_lock_timeout", 600.0, ge=0)
    log_format: Literal["text", "json"] = _ours("log_format", "text")
    report: Path = _ours("report", Path("reports"))
    jwt_algorithm: Literal["HS256", "RS256", "ES256"] | None = _ours("jwt_algorithm", None)
    jwt_secret: SecretStr | None = _ours("jwt_secret", None)
    jwt_jwks_file: Path | None = _ours("jwt_jwks_file", None)
    jwt_issuer: str | None = _ours("jwt_issuer", None)
    jwt_audience: str | None = _ours("jwt_audience", None)
    request_seconds: float = _ours("request_seconds", 30.0, gt=0)
    source_limits: SourceLimits = Field(default_factory=SourceLimits)
    thresholds: Thresholds = Field(default_factory=Thresholds)

    @field_validator("postgres_host")
    @classmethod
    def _check_host(cls, host: str | None) -> str | None:
        if host and ("@" in host or "://" in host):
            raise ValueError("expected the name of a host alone; a whole URL is for DATABASE_URL")
        return host

    @field_validator(
        "pinecone_controller_host",
        "pinecone_grpc_host",
        "google_gemini_base_url",
        "openai_base_url",
        "ollama_host",
        "chroma_host",
    )
    @classmethod
    def _check_address(cls, address: str | None) -> str | None:
        if address and not is_address(address):
            raise ValueError("expected an address such as https://host:443; in a password, / ? # @ are %2F %3F %23 %40")
        return address

    @field_validator("namespace")
    @classmethod
    def _normalize_namespace(cls, name: str) -> str:
        return normalize_namespace(name)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of settings: the arguments, then the environment; no file is read."""
        variables: Mapping[str, str | None] = getattr(env_settings, "env_vars", {})
        return init_settings, _Environment(settings_cls, variables)

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the environment, then ``overrides`` (None: not given). Raises `ConfigError` naming the variable."""
        try:
            settings = cls(**_nested({name: value for name, value in overrides.items() if value is not None}))
        except ValidationError as error:
            problems = "; ".join(f"{_variable(item['loc'])}: {item['msg']}{_got(item)}" for item in error.errors())
            raise ConfigError(problems, hint="correct the variable or the option and run the command again") from None
        return settings.model_copy(update=strategy_settings(dict(settings), settings.model_fields_set))

    def require(self, name: str) -> str:
        """Return the value of a setting that this command cannot do without. Raises `ConfigError` if it is not set."""
        value = getattr(self, name)
        if value is None or value == "":
            variable = _alias(type(self), name).upper()
            raise ConfigError(f"{variable} is not set", hint=f"export {variable}=…")
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)

    @property
    def tls(self) -> dict[str, str]:
        """libpq's TLS parameters for every connection; what the URL itself says comes first."""
        named = {
            "sslmode": self.postgres_sslmode,
            "sslrootcert": self.postgres_sslrootcert,
            "sslcert": self.postgres_sslcert,
            "sslkey": self.postgres_sslkey,
        }
        return {name: value for name, value in named.items() if value}


def _alias(settings: type[BaseModel], field: str) -> str:
    return str(settings.model_fields[field].validation_alias or field)


def _variable(location: Sequence[int | str]) -> str:
    return next(str(part).upper() for part in location if part not in _GROUPS)


def _got(problem: Mapping[str, Any]) -> str:
    """Return what was found instead, unless it may hold a secret."""
    name = _variable(problem["loc"])
    field = next((field for field in Settings.model_fields if _alias(Settings, field).upper() == name), "")
    of_an_address = field.endswith(("_host", "_url"))
    secret = field and SecretStr in get_args(Settings.model_fields[field].annotation)
    return "" if secret or of_an_address else f", got {problem['input']!r}"


def _nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` under the names that the settings are read by, those of a group within that group."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        group = next((group for group, model in _GROUPS.items() if name in model.model_fields), None)
        if group is None:
            values[_alias(Settings, name)] = value
        else:
            values.setdefault(group, {})[_alias(_GROUPS[group], name)] = value
    return values
