"""A running hub in one file, and a hub from that file (docs/operations.md)."""
