"""The store on PostgreSQL with pgvector: its statements, and how a search is planned and sent."""
