"""An application's own environment, as ``alembic init`` makes it, with the import of this package."""

import sqlalchemy as sa
from alembic import context

import amprenta_vectors.ddl  # noqa: F401 - registers the operations

config = context.config
engine = sa.create_engine(str(config.get_main_option("sqlalchemy.url")), poolclass=sa.NullPool)
with engine.connect() as connection:
    context.configure(
        connection=connection,
        version_table="amprenta_version_application",
        amprenta_options=config.attributes.get("options", {}),
    )
    with context.begin_transaction():
        context.run_migrations()
