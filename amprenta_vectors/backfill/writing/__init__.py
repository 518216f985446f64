"""How a batch becomes rows: encoding, COPY, one statement, and the rows that PostgreSQL refuses."""
