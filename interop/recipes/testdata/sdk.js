// Calls the service as programs do that use @aws-sdk/client-kms, and fails where
// an answer is not what they take it for.
const assert = require("node:assert/strict");
const crypto = require("node:crypto");
const kmsPackage = require("@aws-sdk/client-kms");
const { KMS, paginateListAliases, paginateListKeys } = kmsPackage;

const bytes = (b) => Buffer.from(b);

async function fails(name, call) {
  let err;
  await call.catch((e) => (err = e));
  assert.ok(err, `no ${name}`);
  assert.equal(err.name, name, String(err));
  assert.ok(err instanceof (kmsPackage[name] || kmsPackage.KMSServiceException));
  assert.match(err.$metadata.requestId, /^[0-9a-f-]{36}$/);
  return err;
}

async function main() {
  const kms = new KMS({});
  const { KeyMetadata: key } = await kms.createKey({ Description: "größe ☃" });
  assert.ok(Math.abs(Date.now() - key.CreationDate.getTime()) < 300000, key.CreationDate);
  assert.equal(key.Description, "größe ☃");
  const KeyId = key.Arn;

  const EncryptionContext = { größe: "☃", empty: "" };
  const plaintext = crypto.randomBytes(4096);
  const { CiphertextBlob } = await kms.encrypt({ KeyId, Plaintext: plaintext, EncryptionContext });
  assert.deepEqual(bytes((await kms.decrypt({ CiphertextBlob, EncryptionContext })).Plaintext), plaintext);
  await fails("InvalidCiphertextException", kms.decrypt({ CiphertextBlob }));
  await fails("NotFoundException", kms.describeKey({ KeyId: "alias/no-such-key" }));
  await fails("DryRunOperationException", kms.encrypt({ KeyId, Plaintext: plaintext, DryRun: true }));
  await fails("UnsupportedOperationException", kms.enableKeyRotation({ KeyId }));
  await fails("ValidationException", kms.encrypt({ KeyId, Plaintext: crypto.randomBytes(4097) }));
  await fails("ValidationException", kms.createKey({ KeySpec: "NO_SUCH_SPEC" }));
  await fails("AlreadyExistsException", kms.createAlias({ AliasName: "alias/js", TargetKeyId: KeyId }).then(() => kms.createAlias({ AliasName: "alias/js", TargetKeyId: KeyId })));

  const { Plaintext: dataKey, CiphertextBlob: sealedKey } = await kms.generateDataKey({ KeyId, KeySpec: "AES_256" });
  assert.deepEqual((await kms.decrypt({ CiphertextBlob: sealedKey })).Plaintext, dataKey);

  for (const [KeySpec, SigningAlgorithm] of [["ECC_NIST_P384", "ECDSA_SHA_384"], ["RSA_2048", "RSASSA_PKCS1_V1_5_SHA_256"]]) {
    const signer = (await kms.createKey({ KeySpec, KeyUsage: "SIGN_VERIFY" })).KeyMetadata.KeyId;
    const { Signature } = await kms.sign({ KeyId: signer, Message: Buffer.from("message"), SigningAlgorithm });
    const { PublicKey } = await kms.getPublicKey({ KeyId: signer });
    const publicKey = crypto.createPublicKey({ key: bytes(PublicKey), format: "der", type: "spki" });
    assert.ok(crypto.verify(`sha${SigningAlgorithm.slice(-3)}`, Buffer.from("message"), publicKey, Signature));
    await fails("KMSInvalidSignatureException", kms.verify({ KeyId: signer, Message: Buffer.from("other"), Signature, SigningAlgorithm }));
  }

  for (let n = 0; n < 3; n++) await kms.createAlias({ AliasName: `alias/js/${n}`, TargetKeyId: KeyId });
  const pages = [];
  for await (const page of paginateListAliases({ client: kms, pageSize: 3 }, { KeyId })) pages.push(page.Aliases.length);
  assert.deepEqual(pages, [3, 1]);
  const seen = new Set();
  let listed = 0;
  for await (const page of paginateListKeys({ client: kms, pageSize: 1 }, {})) for (const k of page.Keys) listed++, seen.add(k.KeyId);
  assert.equal(seen.size, listed);

  // A clock that is an hour off is set right by the Date of the refusal.
  const now = Date.now;
  for (const off of [3600000, -3600000]) {
    Date.now = () => now() + off;
    const late = new KMS({});
    assert.equal((await late.generateRandom({ NumberOfBytes: 8 })).$metadata.attempts, 2);
    assert.equal((await late.generateRandom({ NumberOfBytes: 8 })).$metadata.attempts, 1);
  }
  Date.now = now;

  // Many at once.
  const many = await Promise.all(Array.from({ length: 64 }, () => kms.generateRandom({ NumberOfBytes: 32 })));
  assert.equal(new Set(many.map((r) => bytes(r.Plaintext).toString("hex"))).size, 64);

  const stranger = new KMS({ credentials: { accessKeyId: "AKIAIOSFODNN7EXAMPLE", secretAccessKey: "x" } });
  await fails("UnrecognizedClientException", stranger.listKeys({}));
  console.log("ran");
}

main().catch((err) => {
  console.error(err);
  process.exit(1);
});
