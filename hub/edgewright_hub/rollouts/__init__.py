"""Staged rollouts: the engine, its gates, who may begin, and what devices are told."""
