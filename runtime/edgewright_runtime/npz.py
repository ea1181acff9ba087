"""The arrays of a package's `.npz` files: golden vectors and self-tests."""

from __future__ import annotations

import io

import numpy as np

from edgewright_contracts.errors import ContractError

from .runtime import Array


def arrays(npz: bytes, name: str) -> dict[str, Array]:
    """All of an archive without pickles, by name. Raises ContractError, which calls the archive `name`."""
    import zipfile  # takes 0.4 MB, and an agent reads archives only in its self-test's process

    try:
        with np.load(io.BytesIO(npz), allow_pickle=False) as archive:
            return {key: np.asarray(archive[key]) for key in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ContractError(name, "an npz archive without pickles", str(error)) from None
