"""The hub: ingest, fleet, drift, rollout, registry and web pages.

Order of data: broker → `ingest` → telemetry.db → conductor (by cursor) → hub.db → `desired` → broker. `serve` owns the
tasks; everything else can be used, and is tested, without it.
"""
