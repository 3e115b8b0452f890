"""Calls the service as programs do that use boto3, and fails where an answer is
not what they take it for."""

import datetime
import hashlib
import http.client
import os
import urllib.parse

import boto3
import botocore
import botocore.config
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding

endpoint = os.environ["AWS_ENDPOINT_URL"]
kms = boto3.client("kms", endpoint_url=endpoint)


def fails(error, call, **arguments):
    """Fails unless the call does, with the exception."""
    try:
        call(**arguments)
    except error as e:
        assert e.response["ResponseMetadata"]["RequestId"], e.response
        return e.response["Error"]
    raise AssertionError(f"{call} did not fail")


def code(call, **arguments):
    return fails(ClientError, call, **arguments)["Code"]


# Keys, their times, states, and the waiting for them.
key = kms.create_key(Description="größe ☃", Tags=[{"TagKey": "t", "TagValue": ""}])["KeyMetadata"]
arn = key["Arn"]
assert key["Description"] == "größe ☃" and key["Enabled"] is True, key
age = datetime.datetime.now(datetime.timezone.utc) - key["CreationDate"]
assert abs(age) < datetime.timedelta(minutes=5), age
kms.create_alias(AliasName="alias/boto3/größe".replace("ö", "o").replace("ß", "s"), TargetKeyId=arn)
kms.update_key_description(KeyId=arn, Description="")
assert kms.describe_key(KeyId=arn)["KeyMetadata"]["Description"] == ""
kms.disable_key(KeyId=arn)
fails(kms.exceptions.DisabledException, kms.encrypt, KeyId=arn, Plaintext=b"x")
kms.enable_key(KeyId=arn)
due = kms.schedule_key_deletion(KeyId=arn, PendingWindowInDays=30)["DeletionDate"]
assert due == kms.describe_key(KeyId=arn)["KeyMetadata"]["DeletionDate"]
fails(kms.exceptions.KMSInvalidStateException, kms.generate_data_key, KeyId=arn, KeySpec="AES_256")
kms.cancel_key_deletion(KeyId=arn)
kms.enable_key(KeyId=arn)

# Bytes of all kinds, str for bytes as boto3 allows, and the context.
for plaintext in (b"\x00", bytes(range(256)) * 16, "text", bytearray(b"bytes")):
    want = plaintext.encode() if isinstance(plaintext, str) else bytes(plaintext)
    sealed = kms.encrypt(KeyId=arn, Plaintext=plaintext, EncryptionContext={"größe": "☃ \x7f"})
    opened = kms.decrypt(CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext={"größe": "☃ \x7f"})
    assert opened["Plaintext"] == want and opened["KeyId"] == arn and opened["EncryptionAlgorithm"] == "SYMMETRIC_DEFAULT", opened
fails(kms.exceptions.InvalidCiphertextException, kms.decrypt, CiphertextBlob=b"no ciphertext")
fails(kms.exceptions.NotFoundException, kms.describe_key, KeyId="alias/no-such-key")
fails(kms.exceptions.UnsupportedOperationException, kms.list_grants, KeyId=arn)
assert code(kms.generate_random, NumberOfBytes=1024, CustomKeyStoreId="cks-1234567890abcdef0") == "UnsupportedOperationException"
assert code(kms.encrypt, KeyId=arn, Plaintext=b"x" * 4097) == "ValidationException"
assert code(kms.encrypt, KeyId=arn, Plaintext=b"x", EncryptionAlgorithm="ROT13") == "ValidationException"

# Data keys and pairs.
pair = kms.generate_data_key_pair(KeyId=arn, KeyPairSpec="ECC_NIST_P256")
private = serialization.load_der_private_key(pair["PrivateKeyPlaintext"], None)
public = serialization.load_der_public_key(pair["PublicKey"])
assert private.public_key().public_numbers() == public.public_numbers()
assert kms.decrypt(CiphertextBlob=pair["PrivateKeyCiphertextBlob"])["Plaintext"] == pair["PrivateKeyPlaintext"]
assert len(kms.generate_random(NumberOfBytes=1024)["Plaintext"]) == 1024

# Signatures, checked by another library.
signer = kms.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
public = serialization.load_der_public_key(kms.get_public_key(KeyId=signer)["PublicKey"])
digest = hashlib.sha256(b"message").digest()
signature = kms.sign(KeyId=signer, Message=digest, MessageType="DIGEST", SigningAlgorithm="RSASSA_PSS_SHA_256")["Signature"]
public.verify(signature, b"message", padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
error = fails(kms.exceptions.KMSInvalidSignatureException, kms.verify, KeyId=signer, Message=b"other", Signature=signature, SigningAlgorithm="RSASSA_PSS_SHA_256")

# A shared secret.
agreed = kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT")["KeyMetadata"]["KeyId"]
mine = ec.generate_private_key(ec.SECP256R1())
theirs = serialization.load_der_public_key(kms.get_public_key(KeyId=agreed)["PublicKey"])
if hasattr(kms, "derive_shared_secret"):  # boto3 from 1.34
    der = mine.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    got = kms.derive_shared_secret(KeyId=agreed, PublicKey=der, KeyAgreementAlgorithm="ECDH")["SharedSecret"]
    assert got == mine.exchange(ec.ECDH(), theirs)

# Pages.
for n in range(3):
    kms.create_alias(AliasName=f"alias/boto3/{n}", TargetKeyId=arn)
pages = list(kms.get_paginator("list_aliases").paginate(KeyId=arn, PaginationConfig={"PageSize": 3}))
assert [len(p["Aliases"]) for p in pages] == [3, 1], pages
keys = list(kms.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 2, "MaxItems": 3}).search("Keys[].KeyId"))
assert len(keys) == len(set(keys)) == 3, keys

# Other retry modes, and an access key that nobody has.
for mode in ("legacy", "standard", "adaptive"):
    config = botocore.config.Config(retries={"mode": mode})
    boto3.client("kms", endpoint_url=endpoint, config=config).list_keys(Limit=1)
stranger = boto3.client("kms", endpoint_url=endpoint, aws_access_key_id="AKIAIOSFODNN7EXAMPLE", aws_secret_access_key="x")
assert code(stranger.list_keys) == "UnrecognizedClientException"

# Who am I, and a request to that end for another to send: a POST unless said
# otherwise, with everything in its URL.
sts = boto3.client("sts", endpoint_url=endpoint)
who = sts.get_caller_identity()
assert who["Arn"] == f"arn:aws:iam::{who['Account']}:root", who
for method in (None, "GET"):
    url = sts.generate_presigned_url("get_caller_identity", ExpiresIn=60, HttpMethod=method)
    for changed in ("", "0"):
        host = urllib.parse.urlsplit(url)
        sender = http.client.HTTPConnection(host.netloc)  # unlike urllib, it adds no type
        sender.request(method or "POST", f"/?{host.query}{changed}")
        answer = sender.getresponse()
        text = answer.read().decode()
        if changed:
            assert answer.status == 403 and "SignatureDoesNotMatch" in text, text
        else:
            assert answer.status == 200 and who["Arn"] in text, text

print("ran with boto3", boto3.__version__, "botocore", botocore.__version__)
