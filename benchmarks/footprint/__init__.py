"""The parts of `agent_footprint.py`, by what they measure."""
