"""`python -m tasks sign-release --release N --by NAME`: a person signs a release that is in the ledger already.

For releases from before there was a key, and for those that a new key shall stand for alone. Reads the ledger, the kept evidence and
every byte of the weights; writes the bill of materials where there is none, and the signature, which names the person. Where
the release carries a signature of a key that is accepted now, it has to hold first. Fails with `SignatureError`, `OptionError`,
`ReleaseError`, and `ManifestError` when bytes are gone or differ.
"""

from tasks.errors import OptionError, SignatureError
from tasks.options import parse_options
from tasks.release import ledger as releases
from tasks.release.ledger import ledger
from tasks.release.proven import recall_model
from tasks.release.signing import check, recorded, seal
from tasks.release.signing_keys import key_id, signing_key, verify_keys
from tasks.settings import Settings, settings
from tasks.storage import Storage


def main(arguments: list[str]) -> int:
    """Sign the release that is named."""
    given = parse_options(arguments)
    if set(given) != {"release", "by"} or not given["release"].isdecimal() or not given["by"].strip():
        raise OptionError(f"expected --release N --by NAME, found {sorted(given)}. Next: say which, and who you are.")
    print(sign_release(settings(), int(given["release"]), given["by"].strip()))
    return 0


def sign_release(own: Settings, number: int, by: str) -> str:
    """Sign release `number` as the person `by`; return what to tell. Raises SignatureError, ReleaseError, ManifestError."""
    private = signing_key(own)
    if private is None:
        raise SignatureError(
            "expected MILLRACE_SIGNING_KEY, found none. Next: python -m tasks signing-key --out FOLDER makes one."
        )
    name, storage = key_id(private.public_key()), Storage(own.s3_endpoint_url)
    with ledger(own) as connection:
        releases.lock(connection)
        release = releases.get(connection, number)
        known, keys = recorded(connection, release), verify_keys(own)
        if any(row["key_id"] in keys for row in known.signatures):
            check(keys, storage, release, known)
        if any(row["key_id"] == name for row in known.signatures):
            return f"release {number} is signed with key {name[:12]} already"
        recall_model(storage, release)
        seal(own, storage, connection, release, by=by)
    return f"release {number} is signed with key {name[:12]} by {by}"
