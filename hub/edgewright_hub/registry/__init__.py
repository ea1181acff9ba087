"""Packages: what their owner signs, the repository that devices download from, patches between versions."""
