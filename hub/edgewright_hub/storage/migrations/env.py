"""Run by alembic from `storage.store`, which hands over the open connection and the tables of one database."""

from alembic import context

attributes = context.config.attributes
context.configure(attributes["connection"], target_metadata=attributes["metadata"], render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
