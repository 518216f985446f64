"""The change of a table's embedding model: add a model, migrate the rows to it, compare, switch, retire."""
