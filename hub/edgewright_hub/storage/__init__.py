"""Both databases: their tables, migrations, upserts."""
