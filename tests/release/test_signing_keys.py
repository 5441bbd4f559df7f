"""Keys of one line, and DSSE envelopes: what was signed opens, and nothing else does."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tasks.errors import OptionError, SettingsError
from tasks.release import signing_keys
from tasks.release.signing_keys import key_id, make_pair, opened, sign, signing_key, verify_keys
from tasks.settings import Settings, load_settings

PAYLOAD = b'{"release":1}'


def with_keys(private: str | None, public: str | None) -> Settings:
    made = load_settings({"MILLRACE_DATABASE_URL": "postgresql://x", "MILLRACE_MLFLOW_TRACKING_URI": "http://x"})
    return made.model_copy(update={"signing_key": SecretStr(private) if private else None, "verify_key": public})


def pair() -> tuple[Any, dict[str, Any]]:
    own = with_keys(*make_pair())
    return signing_key(own), verify_keys(own)


def test_the_encoding_is_that_of_the_specification() -> None:
    """The test vector of DSSE's protocol.md."""
    assert signing_keys._encoded("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_an_envelope_opens_with_its_key_alone() -> None:
    private, public = pair()
    envelope = json.dumps(sign(private, PAYLOAD))
    assert opened(envelope, public) == PAYLOAD
    assert opened(envelope, pair()[1]) is None and opened(envelope, {}) is None
    assert opened(envelope, pair()[1] | public) == PAYLOAD  # while keys change, both are accepted


@pytest.mark.parametrize("change", ["payload", "sig", "payloadType", "none", "half"])
def test_what_was_changed_does_not_open(change: str) -> None:
    private, public = pair()
    envelope = sign(private, PAYLOAD)
    if change == "payload":
        envelope["payload"] = base64.b64encode(PAYLOAD.replace(b"1", b"2")).decode()
    elif change == "sig":
        first = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
        first[0] ^= 1
        envelope["signatures"][0]["sig"] = base64.b64encode(first).decode()
    elif change == "payloadType":
        envelope["payloadType"] = "application/json"
    elif change == "none":
        envelope["signatures"] = []
    text = json.dumps(envelope)
    assert opened(text[:40] if change == "half" else text, public) is None


@pytest.mark.parametrize("wrong", ["", "x", "AAAA", "not base64!"])
def test_what_is_no_key_is_refused_and_not_told(wrong: str) -> None:
    private, public = make_pair()
    with pytest.raises(SettingsError, match="MILLRACE_VERIFY_KEY.* item 2"):
        verify_keys(with_keys(None, f"{public},{wrong}"))
    for other in (wrong or "-", public):  # a public key signs nothing
        with pytest.raises(SettingsError, match="MILLRACE_SIGNING_KEY") as caught:
            signing_key(with_keys(other, None))
        assert len(other) < 8 or other not in str(caught.value)
    with pytest.raises(SettingsError, match="item 1") as caught:
        verify_keys(with_keys(None, private))  # nor is the private one handed to whoever verifies
    assert private not in str(caught.value)


def test_a_pair_is_written_once_for_its_owner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    assert signing_keys.main(["--out", str(folder)]) == 0
    lines = dict((folder / name).read_text().strip().split("=", 1) for name in ("signing.env", "verify.env"))
    own = with_keys(lines["MILLRACE_SIGNING_KEY"], lines["MILLRACE_VERIFY_KEY"])
    private = signing_key(own)
    assert private is not None and key_id(private.public_key()) in verify_keys(own)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert lines["MILLRACE_SIGNING_KEY"] not in capsys.readouterr().out
    with pytest.raises(OptionError, match="never written over"):
        signing_keys.main(["--out", str(folder)])


def test_the_line_between_the_lines_of_a_pem_file_is_a_key() -> None:
    """What docker/compose/make_env.sh makes with openssl."""
    pem = subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519"], check=True, capture_output=True).stdout
    public = subprocess.run(["openssl", "pkey", "-pubout"], input=pem, check=True, capture_output=True).stdout
    own = with_keys(pem.decode().splitlines()[1], public.decode().splitlines()[1])
    private = signing_key(own)
    assert private is not None and list(verify_keys(own)) == [key_id(private.public_key())]
