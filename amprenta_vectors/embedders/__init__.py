"""Embedders, which turn texts into float32 matrices: one file a provider, behind `protocol.Embedder`."""
