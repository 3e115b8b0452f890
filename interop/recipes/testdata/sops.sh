# What sops does with keys: contexts that bind, aliases, another key, a disabled one.
kms() { aws --endpoint-url "$AWS_ENDPOINT_URL" --output text kms "$@"; }
words() { (sops decrypt "$1" 2>&1 || true) | grep -o -m 1 -E "$2" || echo "no $2"; }

first=$(kms create-key --query KeyMetadata.Arn)
second=$(kms create-key --query KeyMetadata.Arn)
kms create-alias --alias-name alias/sops --target-key-id "$first"
alias=${first%:key/*}:alias/sops

echo '{"password": "hunter2"}' > plain.json
sops encrypt --kms "$alias" --encryption-context env:prod,team:größe plain.json > sealed.json
sops decrypt sealed.json | jq -r .password

# The file says the context; the service holds to it.
sed 's/"prod"/"test"/' sealed.json > moved.json
cmp -s sealed.json moved.json && echo nothing was changed
words moved.json InvalidCiphertextException

# A new data key for both keys; then the second one is enough.
sops rotate --add-kms "$second" --in-place sealed.json
kms disable-key --key-id "$first"
sops decrypt sealed.json | jq -r .password
kms disable-key --key-id "$second"
words sealed.json DisabledException
kms enable-key --key-id "$second"
sops decrypt sealed.json | jq -r .password

# Bytes of any kind.
head -c 100000 /dev/urandom > plain.bin
sops encrypt --kms "$second" plain.bin > sealed.bin
sops decrypt --input-type binary --output-type binary sealed.bin | cmp - plain.bin && echo same
