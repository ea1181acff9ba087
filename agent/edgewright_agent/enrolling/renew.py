"""Renewal: `python -m edgewright_agent.enrolling.renew HOME`, a process that lives for a second and holds cryptography.

The certificate that is in force asks for the next, for the same key: so one atomic write replaces device.crt, and at no
moment does a key lie beside a certificate of another. (The key of a device that was opened is replaced by enrolling
anew: docs/adr/0013.) Prints {"ends": seconds} or {"error": reason}; exit status as the command line's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from edgewright_contracts.codec import decode
from edgewright_contracts.errors import EdgewrightError, Refused, RequestError, Unavailable

from .. import identity, tls
from ..clock import Clock, SystemClock
from ..disk import Disk, RealDisk, atomic_write
from ..identity import Validity
from .enroll import ANSWER_BYTES, fits, read_key, request, signing_request


class Answer(msgspec.Struct, frozen=True):
    certificate: str


def renew(disk: Disk, home: Path, clock: Clock) -> Validity:
    """Replace the certificate; returns the validity of the new one. Raises RequestError, Refused, Unavailable,
    ContractError, OSError; the old one stays then."""
    who = identity.load(home)
    if not who.hub.api:
        raise RequestError(
            "this identity does not know where its hub renews certificates; "
            "`edgewright agent enroll --again` with a token adds it"
        )
    try:
        key = read_key(disk, who.key)
    except FileNotFoundError:
        raise RequestError(f"{who.key} is gone; enrol the device anew") from None
    body = json.dumps({"csr": signing_request(who.device, key)}).encode()
    pool = tls.connections(who, clock, who.hub.api, named=True)()
    data = request(pool, "POST", who.hub.api + "/api/v1/renew", ANSWER_BYTES, body)
    made = decode(Answer, data, name="the hub's answer", limit=ANSWER_BYTES, wire="json").certificate
    fits(made, key, who.device)
    ends = identity.validity(made.encode())
    atomic_write(disk, who.certificate, made.encode())
    return ends


def main(arguments: list[str]) -> int:
    try:
        found = renew(RealDisk(), Path(arguments[0]), SystemClock())
    except (EdgewrightError, OSError) as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return 1 if isinstance(error, Refused) else 3 if isinstance(error, Unavailable | OSError) else 2
    sys.stdout.write(json.dumps({"ends": found.ends}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
