"""`SimpleVectorStore`: a folder of pickle and JSON files for each user, perhaps encrypted."""
