"""How a batch becomes rows: encoding, COPY, one statement, and what is refused of it."""
