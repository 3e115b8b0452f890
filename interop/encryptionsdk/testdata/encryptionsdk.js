// Encrypts or decrypts with the AWS Encryption SDK for JavaScript, as the
// environment's JOB says, and prints what came of it and which calls it took.
const sdk = require("@aws-crypto/client-node");
const { KMS } = require("@aws-sdk/client-kms");

const job = JSON.parse(Buffer.from(process.env.JOB, "base64"));
const result = { outputs: [], contexts: [], calls: {}, error: "" };

const clientProvider = sdk.getClient(
  class extends KMS {
    constructor(config) {
      super(config);
      this.middlewareStack.add(
        (next, context) => (args) => {
          result.calls[context.commandName] = (result.calls[context.commandName] || 0) + 1;
          return next(args);
        },
        { step: "initialize" },
      );
    }
  },
);

(async () => {
  const { encrypt, decrypt } = sdk.buildClient(sdk.CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT);
  if (job.mode === "encrypt") {
    let materials = new sdk.KmsKeyringNode({ clientProvider, generatorKeyId: job.keyId, keyIds: job.more || [] });
    if (job.cached) {
      materials = new sdk.NodeCachingMaterialsManager({
        backingMaterials: materials, cache: sdk.getLocalCryptographicMaterialsCache(10), maxAge: 60000, maxMessagesEncrypted: 100,
      });
    }
    for (const input of job.inputs) {
      const plaintext = Buffer.from(input, "base64");
      const options = { encryptionContext: job.context };
      if (job.cached) options.plaintextLength = plaintext.length; // the cache counts bytes
      const made = await encrypt(materials, plaintext, options);
      result.outputs.push(made.result.toString("base64"));
      result.contexts.push(made.messageHeader.encryptionContext);
    }
  } else {
    const keyring = new sdk.KmsKeyringNode({ clientProvider, keyIds: [job.keyId] });
    for (const input of job.inputs) {
      const opened = await decrypt(keyring, Buffer.from(input, "base64"));
      result.outputs.push(opened.plaintext.toString("base64"));
      result.contexts.push(opened.messageHeader.encryptionContext);
    }
  }
})()
  .catch((err) => {
    result.error = String(err);
  })
  .finally(() => console.log(JSON.stringify(result)));
