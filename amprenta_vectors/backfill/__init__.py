"""The engine that fills an embedding column: plan, claim, fetch, write, verify."""
