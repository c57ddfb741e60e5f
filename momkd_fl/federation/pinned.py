"""A connection to the one coordinator that a site's contract names, whoever else has a certificate of the root."""

from __future__ import annotations

import hashlib
import ssl
from typing import Any, Final

NOT_PINNED: Final = 1000
"""Where OpenSSL has its verification codes (all below 100)."""


def pin(context: ssl.SSLContext, sha256: str) -> None:
    """Let ``context`` finish handshakes only with the certificate of that SHA-256 (of its DER form)."""

    class Pinned(ssl.SSLSocket):
        """Looks at the certificate in the handshake, so that no byte of a request is sent before."""

        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            shown = self.getpeercert(binary_form=True) or b""
            if hashlib.sha256(shown).hexdigest() != sha256:
                problem: Any = ssl.SSLCertVerificationError("not the coordinator that the contract names")
                problem.verify_code, problem.verify_message = NOT_PINNED, "not the coordinator of the contract"
                raise problem

    context.sslsocket_class = Pinned
