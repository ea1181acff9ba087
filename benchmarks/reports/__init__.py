"""The parts of `ingest.py`, by what they measure."""
