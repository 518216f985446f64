"""Texts to float32 matrices: one file a provider, behind `protocol.Embedder`."""
