# What scripts do with the AWS CLI: $AWS is one, and each line of output is
# checked by the test.
kms() { "$AWS" --endpoint-url "$AWS_ENDPOINT_URL" --output text kms "$@"; }

id=$(kms create-key --key-spec ECC_NIST_P256 --key-usage SIGN_VERIFY --tags TagKey=team,TagValue='a b' --query KeyMetadata.KeyId)
kms list-resource-tags --key-id "$id" --query 'Tags[].[TagKey,TagValue]'
kms untag-resource --key-id "$id" --tag-keys team
kms list-resource-tags --key-id "$id" --query 'length(Tags)'
kms get-key-policy --key-id "$id" --policy-name default --query Policy | jq -r '.Statement[0].Effect'

# A signature that openssl verifies, with the public key from the service.
printf 'attack at dawn' > message
kms sign --key-id "$id" --message fileb://message --signing-algorithm ECDSA_SHA_256 --query Signature | base64 -d > signature
kms get-public-key --key-id "$id" --query PublicKey | base64 -d > public.der
openssl dgst -sha256 -verify public.der -keyform DER -signature signature message
kms verify --key-id "$id" --message fileb://message --signature fileb://signature --signing-algorithm ECDSA_SHA_256 --query SignatureValid
openssl dgst -sha256 -binary message > digest
kms verify --key-id "$id" --message fileb://digest --message-type DIGEST --signature fileb://signature --signing-algorithm ECDSA_SHA_256 --query SignatureValid

# Pages by the CLI's own tokens, and by the service's.
kms create-key > /dev/null
kms list-keys --max-items 1 --page-size 1 --query 'Keys[].[KeyId]' | grep -c -e '-'
kms list-keys --no-paginate --limit 1 --query Truncated
kms list-keys --page-size 2 --query 'Keys[].[KeyId]' | grep -c "$id"

# What scripts look at when something is wrong: the status, and the words.
status=0
kms describe-key --key-id alias/no-such-key 2> words || status=$?
cat words
echo "status $status"
status=0
kms enable-key-rotation --key-id "$id" 2> words || status=$?
grep -o '(UnsupportedOperationException) when calling the EnableKeyRotation operation' words
kms encrypt --key-id "$id" --plaintext fileb://message 2>&1 | grep -o '(InvalidKeyUsageException)' || true
AWS_SECRET_ACCESS_KEY=wrong kms list-keys 2>&1 | grep -o '(InvalidSignatureException)' || true
