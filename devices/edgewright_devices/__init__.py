"""Device profiles: one TOML per device beside this file, loaded as a frozen `DeviceProfile`."""

from __future__ import annotations

from .profile import DeviceProfile, all_profiles, load

__all__ = ["DeviceProfile", "all_profiles", "load"]
