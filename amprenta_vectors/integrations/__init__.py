"""Our stores behind the interfaces of frameworks: one file a framework."""
