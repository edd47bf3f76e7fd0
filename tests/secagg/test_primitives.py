"""Known answers for the primitives: the RFCs' own vectors, and PyCryptodome as a second implementation."""

from __future__ import annotations

import os

import pytest
from Crypto.Cipher import AES, ChaCha20, ChaCha20_Poly1305
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtune.secagg.canonical import canonical
from fedtune.secagg.identity import Identity, verify
from fedtune.secagg.masks import keystream
from fedtune.secagg.primitives import Agreement, hkdf, new_private_key, open_sealed, public_key, seal
from fedtune.secagg.shamir import PRIME


def test_x25519_agrees_as_in_rfc_7748_section_6_1() -> None:
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert public_key(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert public_key(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    secret = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert Agreement(alice).with_peer(public_key(bob)).hex() == secret
    assert Agreement(bob).with_peer(public_key(alice)).hex() == secret


def test_a_public_key_of_low_order_is_refused() -> None:
    with pytest.raises(ValueError, match="shared key"):
        Agreement(new_private_key(PRIME)).with_peer(bytes(32))


def test_hkdf_gives_the_first_block_of_rfc_5869_case_1() -> None:
    derived = hkdf(b"\x0b" * 22, salt=bytes(range(13)), info=bytes(range(0xF0, 0xFA)))
    assert derived.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


def test_aes_stream_starts_with_the_nist_zero_key_block() -> None:
    # AES-256 of the zero block under the zero key, NIST AESAVS; counter mode from 0 is its first block.
    assert keystream(bytes(32), "aes256ctr").update(bytes(16)).hex() == "dc95c078a2408989ad48a21492842087"


def test_chacha_stream_starts_with_rfc_8439_vector_1() -> None:
    expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert keystream(bytes(32), "chacha20").update(bytes(32)).hex() == expected


def test_streams_equal_those_of_another_implementation() -> None:
    key, zeros = os.urandom(32), bytes(100_000)
    aes = AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0)
    assert keystream(key, "aes256ctr").update(zeros) == aes.encrypt(zeros)
    chacha = ChaCha20.new(key=key, nonce=bytes(8))
    assert keystream(key, "chacha20").update(zeros) == chacha.encrypt(zeros)


def test_sealing_equals_that_of_another_implementation_and_opens() -> None:
    key, message, context = os.urandom(32), os.urandom(96), b"context"
    other = ChaCha20_Poly1305.new(key=key, nonce=bytes(12))
    other.update(context)
    ciphertext, tag = other.encrypt_and_digest(message)
    assert seal(key, message, context) == ciphertext + tag
    assert open_sealed(key, ciphertext + tag, context) == message


def test_a_sealed_message_opens_under_its_own_key_bytes_and_context_only() -> None:
    key, message = os.urandom(32), os.urandom(96)
    sealed = seal(key, message, b"context")
    assert open_sealed(os.urandom(32), sealed, b"context") is None
    assert open_sealed(key, sealed, b"another") is None
    assert open_sealed(key, sealed[:-1], b"context") is None
    for at in range(0, len(sealed), 7):
        flipped = bytearray(sealed)
        flipped[at] ^= 1
        assert open_sealed(key, bytes(flipped), b"context") is None


def test_ed25519_signs_as_in_rfc_8032_test_1() -> None:
    key = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    identity = Identity(key)
    assert identity.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555f"
        "b8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


def test_a_signature_holds_for_one_purpose_signer_and_body_only() -> None:
    one, other = Identity.generate(), Identity.generate()
    signature = one.sign("purpose", b"body")
    assert verify(one.public, "purpose", b"body", signature)
    assert not verify(one.public, "another purpose", b"body", signature)
    assert not verify(one.public, "purpose", b"another body", signature)
    assert not verify(other.public, "purpose", b"body", signature)
    assert not verify(bytes(31), "purpose", b"body", signature)
    assert not verify(one.public, "purpose", b"body", signature[:-1])


def test_an_identity_survives_its_file_and_is_never_overwritten_or_shown(tmp_path) -> None:
    identity = Identity.generate()
    path = tmp_path / "identity.pem"
    identity.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load(path).public == identity.public
    with pytest.raises(FileExistsError):
        identity.save(path)
    path.chmod(0o644)
    with pytest.raises(Exception, match="can be read by others"):
        Identity.load(path)


def test_a_file_that_is_no_ed25519_key_is_refused(tmp_path) -> None:
    path = tmp_path / "identity.pem"
    with pytest.raises(Exception, match=r"FT928.*cannot be read"):
        Identity.load(path)
    path.write_text("nonsense")
    path.chmod(0o600)
    with pytest.raises(Exception, match="FT928"):
        Identity.load(path)


def test_half_a_key_does_not_stay_when_the_disk_is_full(tmp_path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Identity.generate().save(tmp_path / "identity.pem")
    assert list(tmp_path.iterdir()) == []


def test_canonical_tells_apart_what_concatenation_confuses() -> None:
    assert canonical(b"ab", b"c") != canonical(b"a", b"bc")
    assert canonical("1") != canonical(1) != canonical(b"1")
    assert canonical(0) != canonical(b"")
    assert canonical() != canonical("")
    assert canonical(b"a", 7) + canonical("x") == canonical(b"a", 7, "x")
    with pytest.raises(ValueError, match="non-negative"):
        canonical(-1)
