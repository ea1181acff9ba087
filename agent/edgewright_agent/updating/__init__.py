"""Packages: the update machine, its steps, the slots on disk, downloads, trust, health."""
