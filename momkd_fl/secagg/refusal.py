"""The one exception of the room, and every code that it can carry."""

from __future__ import annotations

REFUSALS = {
    "codes-are-closed": "a refusal was raised with a code that is not listed here",
    "message-malformed": "the bytes are no message of this protocol: cut off, too long, or not in canonical form",
    "message-version": "the message is of another version of the protocol",
    "message-unexpected": "a message of another step: out of order, repeated after the step, or after the end",
    "message-too-large": "the message is larger than any of its kind can be",
    "signature-wrong": "the signature does not belong to the sender and these bytes",
    "sender-unknown": "the sender is no participant of this round, or not of this step",
    "sender-equivocates": "the sender said something else before in the same step",
    "manifest-invalid": "the manifest breaks a rule of the protocol (names, threshold, segments, or bounds)",
    "manifest-differs": "a message belongs to another manifest: another run, round, model, or set of sites",
    "run-not-allowed": "the site's policy does not allow this run",
    "round-not-rising": "the round's number is not above the last that the site took part in",
    "site-not-listed": "the site is not among the participants",
    "site-not-allowed": "a participant's identity is not on the site's allow-list",
    "pinned-too-few": "fewer sites that the contract pins take part than it needs",
    "model-differs": "the manifest's model and memory are not those that the site received",
    "holder-false": "the manifest lists the site as a holder of what it does not hold",
    "segment-ungated": "the policy wants a least number of holders for a segment, and the manifest gives none",
    "pairing-not-allowed": "the policy does not allow pairing with neighbours only",
    "roster-own-changed": "the list of keys lacks the site's own, or has another in its place",
    "key-repeated": "two sites announce the same key",
    "key-weak": "a public key gives no shared secret (a point of small order)",
    "sites-too-few": "fewer sites are left than the threshold",
    "roster-differs": "a message belongs to another list of keys, or of sites that dealt shares",
    "share-not-opened": "a sealed share cannot be opened: changed, or meant for another round, sender or receiver",
    "share-kind": "shares of the wrong kind: one kind for each peer, self masks of survivors, mask keys of the others",
    "shares-too-few": "fewer valid shares arrived than it takes to recover a secret",
    "secret-wrong": "what the shares recover is not what the dealer committed to",
    "values-wrong": "the values to be masked are not those that the manifest describes (names or lengths)",
    "values-not-held": "the site has values other than zero in a segment that it is not a holder of",
    "values-saturate": "a value is not finite, or outside the range of its encoding",
    "weight-wrong": "the site's weight is not above zero and at most the agreed one",
    "survivors-overlap": "survivors and dropped sites are not a partition of the sites that dealt shares",
    "survivors-without-self": "the site's own masked vector is said not to have arrived",
    "survivors-differ": "a signature belongs to another set of survivors",
    "consents-too-few": "fewer sites than the threshold have signed the same set of survivors",
}


class SecAggError(Exception):
    """A message or a step is refused; nothing of it has been used.

    Parameters
    ----------
    code : str
        One of :data:`REFUSALS`; stable, and safe to log or to send.
    site : str
        The site that the refusal is about, where there is one.
    """

    def __init__(self, code: str, site: str = "") -> None:
        code = code if code in REFUSALS else "codes-are-closed"
        about = f"{site}: " if site else ""
        super().__init__(f"{about}{REFUSALS[code]} [{code}]")
        self.code = code
        self.site = site
