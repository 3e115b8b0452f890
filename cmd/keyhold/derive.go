package main

import (
	"encoding/pem"
	"errors"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// maxPublicKeyBytes is the API's limit of a public key, in DER. PEM is larger.
const maxPublicKeyBytes = 8192

func (a *app) deriveCommand() *cobra.Command {
	var key, out string
	var enc encoding
	cmd := &cobra.Command{
		Use:   "derive --key KEY [PEER]",
		Short: "Derive a shared secret with someone's public key",
		Long: `Derive the secret that a key of the token and a peer's key have in common, by ECDH
inside the token. PEER is a file with the peer's public key, SubjectPublicKeyInfo
in PEM or DER; without it, standard input. The peer gets the same secret from
` + "`keyhold pubkey`" + ` and their private key.

The secret is the x coordinate of a point and not uniform: derive keys from it
with a KDF, such as HKDF.`,
		Example: `  keyhold key create --spec ECC_NIST_P256 --usage KEY_AGREEMENT --alias agree
  keyhold derive --key alias/agree --out secret peer.pem`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			peer, err := a.readInput(cmd.Context(), fileArgument(args), inputSpec{name: "peer's public key", limit: 2 * maxPublicKeyBytes})
			if err != nil {
				return err
			}
			if peer, err = publicKeyDER(peer); err != nil {
				return err
			}
			return a.withClient(func(c *client.Client) error {
				resp, err := c.Crypto.DeriveSharedSecret(cmd.Context(), &keyholdv1.DeriveSharedSecretRequest{
					KeyId: key, PublicKey: peer,
					KeyAgreementAlgorithm: keyholdv1.KeyAgreementAlgorithmSpec_KEY_AGREEMENT_ALGORITHM_SPEC_ECDH,
				})
				if err != nil {
					return rpcError(err)
				}
				return a.printResult(resp, resp.GetSharedSecret(), out, enc)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the key, of usage KEY_AGREEMENT: id, ARN, alias/NAME or alias ARN")
	resultFlags(cmd, &out, &enc)
	requireFlags(cmd, "key")
	return cmd
}

// publicKeyDER takes a public key out of PEM. What is no PEM is taken for DER,
// which the server looks at.
func publicKeyDER(b []byte) ([]byte, error) {
	block, _ := pem.Decode(b)
	switch {
	case block == nil:
		return b, nil
	case block.Type != "PUBLIC KEY":
		return nil, withHint(errors.New("the peer's public key is PEM of a "+block.Type+", and not of a PUBLIC KEY"),
			"`openssl pkey -pubout` or `openssl x509 -pubkey -noout` writes one")
	}
	return block.Bytes, nil
}
