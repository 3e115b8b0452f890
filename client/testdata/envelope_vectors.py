#!/usr/bin/env python3
"""Writes envelope-vectors.json beside itself: the format of
docs/envelope-format.md, written a second time and independently of the Go
code. Needs the package `cryptography`. All inputs are fixed, so that a second
run writes the same bytes."""

import json
import pathlib

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

DATA_KEY = bytes(range(0x20))
EDK = bytes(range(0x40, 0x50))
MESSAGE_ID = bytes(range(0xA0, 0xC0))
IV = bytes(range(0xC0, 0xCC))


def part(b):
    return len(b).to_bytes(4, "big") + b


def canonical(context):
    pairs = sorted((k.encode(), v.encode()) for k, v in context.items())
    return len(pairs).to_bytes(4, "big") + b"".join(part(k) + part(v) for k, v in pairs)


def header(edk, message_id, version=1):
    return bytes([version]) + len(edk).to_bytes(2, "big") + edk + message_id


def derive(data_key, message_id, info=b"keyhold envelope v1"):
    return HKDF(SHA256(), 32, message_id, info).derive(data_key)


def message(context, plaintext, data_key=DATA_KEY, edk=EDK, message_id=MESSAGE_ID, iv=IV):
    head = header(edk, message_id)
    return head + iv + AESGCM(derive(data_key, message_id)).encrypt(iv, plaintext, head + canonical(context))


def vector(name, context, plaintext, data_key=DATA_KEY, edk=EDK, message_id=MESSAGE_ID, iv=IV):
    return {
        "name": name,
        "data_key_hex": data_key.hex(),
        "edk_hex": edk.hex(),
        "message_id_hex": message_id.hex(),
        "iv_hex": iv.hex(),
        "context": context,
        "canonical_context_hex": canonical(context).hex(),
        "message_key_hex": derive(data_key, message_id).hex(),
        "plaintext_hex": plaintext.hex(),
        "message_hex": message(context, plaintext, data_key, edk, message_id, iv).hex(),
    }


def vectors():
    bound = {"tenant": "42", "purpose": "backup"}
    yield vector("no context, no plaintext", {}, b"")
    yield vector("worked example", bound, b"attack at dawn")
    yield vector("empty key, empty value", {"": "a", "b": ""}, b"x")
    yield vector("order is that of UTF-8, not of UTF-16", {"\U00010000": "1", "\uffff": "2"}, bytes(range(256)))
    yield vector("encrypted data key of 1 byte", bound, b"x", edk=b"\x00")
    yield vector("longest encrypted data key", {}, b"x", edk=bytes(6144))


def negative(name, stage, msg, context=None):
    return {"name": name, "stage": stage, "data_key_hex": DATA_KEY.hex(), "context": context or {}, "message_hex": msg.hex()}


def negatives():
    plaintext = b"attack at dawn"
    good = message({}, plaintext)
    head = header(EDK, MESSAGE_ID)

    def sealed(key, aad):
        return head + IV + AESGCM(key).encrypt(IV, plaintext, aad)

    yield negative("empty", "parse", b"")
    yield negative("version 0", "parse", b"\x00" + good[1:])
    yield negative("version 2", "parse", b"\x02" + good[1:])
    yield negative("no encrypted data key", "parse", header(b"", MESSAGE_ID) + bytes(28))
    yield negative("encrypted data key too long", "parse", header(bytes(6145), MESSAGE_ID) + bytes(28))
    yield negative("encrypted data key runs past the end", "parse", b"\x01\x17\xff" + good[3:])
    yield negative("no room for IV and tag", "parse", head + bytes(27))
    yield negative("IV and tag, but no message was sealed so", "open", head + bytes(28))
    yield negative("another context", "open", good, {"tenant": "42"})
    yield negative("the data key itself as the key", "open", sealed(DATA_KEY, head + canonical({})))
    yield negative("derived for something else", "open", sealed(derive(DATA_KEY, MESSAGE_ID, b""), head + canonical({})))
    yield negative("no context in the AAD", "open", sealed(derive(DATA_KEY, MESSAGE_ID), head))
    yield negative("no header in the AAD", "open", sealed(derive(DATA_KEY, MESSAGE_ID), canonical({})))
    yield negative("another encrypted data key", "open", good[:3] + b"\xff" + good[4:])
    yield negative("one byte more", "open", good + b"\x00")


out = pathlib.Path(__file__).with_name("envelope-vectors.json")
out.write_text(json.dumps({"vectors": list(vectors()), "negative": list(negatives())}, indent=1) + "\n")
