#!/usr/bin/env python3
"""Writes ciphertext-vectors.json beside itself: the format of
docs/ciphertext-format.md, written a second time and independently of the Go
code. Needs the package `cryptography`. All inputs are fixed, so that a second
run writes the same bytes."""

import hashlib
import json
import pathlib
import uuid

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY = bytes(range(0x20))
KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
REF = bytes(range(0xA0, 0xB0))
IV = bytes(range(0xC0, 0xCC))


def part(b):
    return len(b).to_bytes(4, "big") + b


def canonical(context):
    pairs = sorted((k.encode(), v.encode()) for k, v in context.items())
    return len(pairs).to_bytes(4, "big") + b"".join(part(k) + part(v) for k, v in pairs)


def aad(key_id, ref, context):
    return b"\xff\xff\x01" + uuid.UUID(key_id).bytes + ref + hashlib.sha256(canonical(context)).digest()


def blob(key_id, ref, iv, meta, sealed, version=1):
    return (bytes([version]) + uuid.UUID(key_id).bytes + ref
            + bytes([len(iv)]) + iv + bytes([len(meta)]) + meta + sealed)


def seal(context, plaintext, key=KEY, key_id=KEY_ID, ref=REF, iv=IV):
    return AESGCM(key).encrypt(iv, plaintext, aad(key_id, ref, context))


def vector(name, context, plaintext, key=KEY, key_id=KEY_ID, ref=REF, iv=IV):
    return {
        "name": name,
        "key_hex": key.hex(),
        "key_id": key_id,
        "ref_hex": ref.hex(),
        "iv_hex": iv.hex(),
        "context": context,
        "canonical_context_hex": canonical(context).hex(),
        "plaintext_hex": plaintext.hex(),
        "aad_hex": aad(key_id, ref, context).hex(),
        "blob_hex": blob(key_id, ref, iv, b"", seal(context, plaintext, key, key_id, ref, iv)).hex(),
    }


def vectors():
    pairs = {"purpose": "backup", "tenant": "42", "": "empty key", "empty value": ""}
    yield vector("no context, one byte", {}, b"\x00")
    yield vector("worked example", {"tenant": "42", "purpose": "backup"}, b"attack at dawn")
    yield vector("four pairs", pairs, b"attack at dawn")
    yield vector("four pairs, other order", dict(reversed(pairs.items())), b"attack at dawn")
    yield vector("boundary moved between key and value", {"a": "bc"}, b"attack at dawn")
    yield vector("boundary moved between key and value, other side", {"ab": "c"}, b"attack at dawn")
    yield vector("an upper-case key sorts before a lower-case one", {"a": "1", "B": "2"}, b"attack at dawn")
    # U+FF5E sorts before U+10000 in UTF-8, after it in UTF-16.
    yield vector("non-ASCII: order of UTF-8 bytes, not of UTF-16 units",
                 {"\U00010000": "four bytes", "\uff5e": "three bytes", "Schl\u00fcssel": "\u9375"}, "grüße".encode())
    # The same letter, composed and decomposed: two different contexts.
    yield vector("composed letter, not normalised", {"k": "\u00e9"}, b"attack at dawn")
    yield vector("decomposed letter, not normalised", {"k": "e\u0301"}, b"attack at dawn")
    yield vector("longest context", {"k" * 4096: "v" * 4096}, b"attack at dawn")
    yield vector("longest plaintext", {"tenant": "42"}, bytes(i % 251 for i in range(4096)))
    yield vector("other key, id, ref and IV", {"tenant": "42"}, b"attack at dawn", key=bytes([0x5A] * 32),
                 key_id="ffffffff-ffff-4fff-bfff-ffffffffffff", ref=bytes([0xFF] * 16), iv=bytes([0xFF] * 12))


def negatives():
    """What must not parse ("parse"), or parses and must not open ("open")."""
    context, plaintext = {"tenant": "42"}, b"attack at dawn"
    sealed = seal(context, plaintext)
    good = blob(KEY_ID, REF, IV, b"", sealed)

    def case(stage, name, b, context=context):
        return {"name": name, "stage": stage, "key_hex": KEY.hex(), "context": context, "blob_hex": b.hex()}

    yield case("parse", "empty", b"")
    yield case("parse", "version only", good[:1])
    yield case("parse", "cut after the Ref", good[:33])
    yield case("parse", "cut inside the IV", good[:40])
    yield case("parse", "cut before the metadata length", good[:46])
    yield case("parse", "cut before the ciphertext", good[:47])
    yield case("parse", "tag cut short, no ciphertext", good[:62])
    yield case("parse", "tag but no ciphertext", good[:47] + sealed[-16:])
    yield case("parse", "version 0", blob(KEY_ID, REF, IV, b"", sealed, version=0))
    yield case("parse", "version 2", blob(KEY_ID, REF, IV, b"", sealed, version=2))
    yield case("parse", "IV of 0 bytes", blob(KEY_ID, REF, b"", b"", sealed))
    yield case("parse", "IV of 11 bytes", blob(KEY_ID, REF, IV[:11], b"", sealed))
    yield case("parse", "IV of 17 bytes", blob(KEY_ID, REF, bytes(17), b"", sealed))
    yield case("parse", "metadata of 21 bytes", blob(KEY_ID, REF, IV, bytes(21), sealed))
    yield case("parse", "metadata length beyond the end", good[:46] + b"\x14" + bytes(19))
    yield case("parse", "6,145 bytes", blob(KEY_ID, REF, IV, b"", bytes(6145 - 47)))
    yield case("open", "6,144 bytes", blob(KEY_ID, REF, IV, b"", bytes(6144 - 47)))
    yield case("open", "last byte cut off", good[:-1])
    yield case("open", "a byte too many", good + b"\x00")
    yield case("open", "tag changed", good[:-1] + bytes([good[-1] ^ 1]))
    yield case("open", "ciphertext changed", good[:47] + bytes([good[47] ^ 0x80]) + good[48:])
    yield case("open", "IV changed", good[:34] + bytes([good[34] ^ 1]) + good[35:])
    yield case("open", "Ref changed", good[:17] + bytes([good[17] ^ 1]) + good[18:])
    yield case("open", "key id changed", good[:1] + bytes([good[1] ^ 1]) + good[2:])
    yield case("open", "metadata of a native ciphertext", blob(KEY_ID, REF, IV, b"\x01", sealed))
    yield case("open", "context missing", good, {})
    yield case("open", "context of another value", good, {"tenant": "43"})
    yield case("open", "context with a pair more", good, {"tenant": "42", "x": ""})
    yield case("open", "sealed without AAD",
               blob(KEY_ID, REF, IV, b"", AESGCM(KEY).encrypt(IV, plaintext, None)))


def main():
    out = {
        "comment": "Written by ciphertext_vectors.py; described in docs/ciphertext-format.md. The keys are for tests only.",
        "vectors": list(vectors()),
        "negative": list(negatives()),
    }
    path = pathlib.Path(__file__).with_name("ciphertext-vectors.json")
    path.write_text(json.dumps(out, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
