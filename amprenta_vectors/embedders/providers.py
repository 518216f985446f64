"""The providers of embedding models, and how a registered model says that one is asked."""

from __future__ import annotations

PROVIDERS = ("wordllama", "gemini", "ollama", "openai", "sentence_transformers")
"""The values of ``provider``."""
PARAMETERS = ("model", "query_prefix", "text_prefix")
"""The parameters of a registered model: the provider's own name for it, and what is put before what is embedded."""
