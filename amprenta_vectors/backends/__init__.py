"""The systems that vectors are read from and queried in, one folder a system: client, source, store, inspection."""
