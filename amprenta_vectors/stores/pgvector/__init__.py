"""The store on PostgreSQL: its statements, how a search is planned and sent."""
