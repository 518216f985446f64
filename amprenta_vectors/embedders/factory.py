"""Opens the embedder that the settings name."""

from __future__ import annotations

from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.protocol import Embedder
from amprenta_vectors.errors import ConfigError

GEMINI_DIMENSION = 768


def open_embedder(settings: Settings) -> Embedder:
    """Open the embedder that ``AMPRENTA_EMBEDDER`` names.

    Raises `ConfigError` if the setting or a key is not set, `MissingExtra`; for embedders that are asked for the
    model's dimension, `TransientError`, `SourceNotFound` and whatever else they raise.
    """
    # Each is imported only when it is named: an application need not have the packages of the others.
    match settings.embedder:
        case "wordllama" | "wordllama-128" | "wordllama-64":
            from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder

            smaller = settings.embedder.partition("-")[2]
            return WordLlamaEmbedder(int(smaller)) if smaller else WordLlamaEmbedder()
        case "gemini":
            from amprenta_vectors.embedders.gemini import GeminiEmbedder

            # If both are set, the official client takes this one, too.
            key = "google_api_key" if settings.google_api_key or not settings.gemini_api_key else "gemini_api_key"
            dimension = settings.vector_dimension or GEMINI_DIMENSION
            return GeminiEmbedder(settings.require(key), dimension, settings.google_gemini_base_url)
        case "ollama":
            from amprenta_vectors.embedders.ollama import OllamaEmbedder

            return OllamaEmbedder(settings.ollama_host, settings.ollama_api_model_embedding)
        case "openai":
            from amprenta_vectors.embedders.openai import OpenAIEmbedder

            return OpenAIEmbedder(
                settings.require("openai_api_key"),
                settings.openai_embedding_model,
                settings.vector_dimension,
                settings.openai_base_url,
            )
        case "sentence_transformers":
            from amprenta_vectors.embedders.sentence_transformers import SentenceTransformersEmbedder

            return SentenceTransformersEmbedder(settings.sentence_transformers_model)
        case None:
            raise ConfigError(
                "AMPRENTA_EMBEDDER is not set",
                hint="one of: wordllama, wordllama-128, wordllama-64, gemini, ollama, openai, sentence_transformers",
            )
