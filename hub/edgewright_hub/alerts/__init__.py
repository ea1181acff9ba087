"""Alerts: what a person is to look at, and how it is told to other systems."""
