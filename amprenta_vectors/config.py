"""Settings: the environment, read once, at the edge; everything below is handed what it needs."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from amprenta_vectors.errors import ConfigError


def _ours(name: str, default: Any, **constraints: Any) -> Any:
    """A setting whose field is ``name`` and whose variable is ``AMPRENTA_NAME``."""
    return Field(default, validation_alias=f"AMPRENTA_{name.upper()}", **constraints)


def normalize_namespace(name: str) -> str:
    """Pinecone's default namespace goes by ``""`` and ``"__default__"``; here it is always ``""``."""
    return "" if name == "__default__" else name


class Settings(BaseSettings):
    """Everything that can be set. A field's variable is its name in capitals; the engine's own begin ``AMPRENTA_``."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    database_url: SecretStr | None = None
    migration_database_url: SecretStr | None = None
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
    pinecone_namespace: str = ""
    pinecone_controller_host: str | None = None
    pinecone_transport: Literal["grpc", "rest"] = "grpc"
    pinecone_grpc_host: str | None = None

    vector_backend: str = "pinecone"
    vector_dimension: int | None = Field(None, ge=1, le=16000)
    embedding_model: str | None = None

    table: str = _ours("table", "rag_chunks")
    text_field: str = _ours("text_field", "text")
    batch_size: int = _ours("batch_size", 1000, ge=1, le=100_000)
    workers: int = _ours("workers", 5, ge=1, le=256)
    pool_size: int = _ours("pool_size", 5, ge=1)
    lease_seconds: float = _ours("lease_seconds", 15.0, gt=0)
    retry_seconds: float = _ours("retry_seconds", 600.0, ge=0)
    migration_lock_timeout: float = _ours("migration_lock_timeout", 600.0, ge=0)
    log_format: Literal["text", "json"] = _ours("log_format", "text")

    @field_validator("pinecone_namespace")
    @classmethod
    def _normalize_namespace(cls, name: str) -> str:
        return normalize_namespace(name)

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """The environment, with ``overrides`` (None: not given) on top. Raises `ConfigError` naming the variable."""
        try:
            return cls(**{_alias(cls, name): value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            problems = "; ".join(
                f"{str(item['loc'][0]).upper()}: {item['msg']}, got {item['input']!r}" for item in error.errors()
            )
            raise ConfigError(problems, hint="correct the variable or the option and run the command again") from None

    def require(self, name: str) -> str:
        """The value of a setting that this command cannot do without. Raises `ConfigError` where it is not set."""
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


def _alias(settings: type[Settings], field: str) -> str:
    return str(settings.model_fields[field].validation_alias or field)
