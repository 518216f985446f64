"""What is amiss with a database, its index or the settings: one small function a check, and nothing is changed."""
