"""Rows that people bring: from folders, tables, archives and loaders to checked `rows.Data` in three splits."""
