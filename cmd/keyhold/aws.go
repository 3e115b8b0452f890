package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) awsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "aws -- ARGUMENT...",
		Short: "Run the AWS CLI against the server",
		Long: `Run the AWS CLI (aws, which must be installed) against the server's AWS door:
endpoint, region and credentials are set for it, and profiles and session tokens are
not. It takes the place of this program, with its input, output and exit code.

They come from the environment if that names an endpoint (` + awsEndpointKMS + ` or
` + awsEndpoint + `): ` + awsAccessKeyID + `, ` + awsSecret + `, ` + awsRegion + ` or
` + awsDefaultRegion + `, and ` + awsCABundle + ` where a certificate is not of an authority
that the system knows. Else all of them come from ./` + devEnvFile + `, which
` + "`keyholdd dev`" + ` writes. --region says another region.

The server has the services kms and sts (get-caller-identity); no others are there.
The secret is handed over in the environment, never on a command line.`,
		Example: `  keyhold aws -- kms list-keys
  keyhold aws -- kms encrypt --key-id alias/app --plaintext fileb://secret --output text --query CiphertextBlob
  keyhold aws --region eu-west-1 -- sts get-caller-identity`,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("say what aws is to do, such as `keyhold aws -- kms list-keys`")
			}
			return a.runAWS(args)
		},
	}
	// What follows the first word is the AWS CLI's, also without a --.
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// runAWS becomes the AWS CLI; it returns if that cannot be.
func (a *app) runAWS(args []string) error {
	s, err := a.awsSettings()
	if err != nil {
		return err
	}
	program, err := exec.LookPath("aws")
	if err != nil {
		err = errors.New("the AWS CLI is not installed: there is no program aws in PATH")
		return withHint(err, "Debian and Ubuntu: apt install awscli; Fedora: dnf install awscli2; Alpine: apk add aws-cli; macOS: brew install awscli; anywhere: pipx install awscli")
	}
	// Versions before 2.13 know no AWS_ENDPOINT_URL.
	argv := append([]string{"aws", "--endpoint-url", s.endpoint.String()}, args...)
	if err := become(program, argv, s.environ(os.Environ())); err != nil {
		return fmt.Errorf("run %s: %w", program, err)
	}
	return nil
}

// environ returns the environment for an AWS tool.
func (s *awsSettings) environ(environ []string) []string {
	own := map[string]string{
		awsEndpoint: s.endpoint.String(), awsEndpointKMS: s.endpoint.String(), awsRegion: s.region, awsDefaultRegion: s.region,
		awsAccessKeyID: s.accessKeyID, awsSecret: s.secret, awsCABundle: s.caBundle,
		// They would count more, or be sent along.
		awsSessionToken: "", awsSecurityToken: "", awsProfile: "", awsDefaultProfile: "",
	}
	var out []string
	proxied := map[string]string{}
	for _, line := range environ {
		name, value, _ := strings.Cut(line, "=")
		if name == "no_proxy" || name == "NO_PROXY" {
			proxied[name] = value
		} else if _, ok := own[name]; !ok {
			out = append(out, line)
		}
	}
	// Plaintexts are for the server, and not for a proxy on the way.
	direct := s.endpoint.Hostname()
	if not := firstOf(proxied["no_proxy"], proxied["NO_PROXY"]); not != "" {
		direct = not + "," + direct
	}
	own["no_proxy"], own["NO_PROXY"] = direct, direct
	for name, value := range own {
		if value != "" {
			out = append(out, name+"="+value)
		}
	}
	return out
}
