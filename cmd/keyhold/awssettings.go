package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
)

// Environment variables of AWS's tools, which are also lines of dev.env.
const (
	awsEndpoint       = "AWS_ENDPOINT_URL"
	awsEndpointKMS    = "AWS_ENDPOINT_URL_KMS"
	awsAccessKeyID    = "AWS_ACCESS_KEY_ID"
	awsSecret         = "AWS_SECRET_ACCESS_KEY" //nolint:gosec // G101: a variable's name
	awsRegion         = "AWS_REGION"
	awsDefaultRegion  = "AWS_DEFAULT_REGION"
	awsCABundle       = "AWS_CA_BUNDLE"
	awsSessionToken   = "AWS_SESSION_TOKEN" //nolint:gosec // G101: a variable's name
	awsSecurityToken  = "AWS_SECURITY_TOKEN"
	awsProfile        = "AWS_PROFILE"
	awsDefaultProfile = "AWS_DEFAULT_PROFILE"
)

// awsSettings is how the AWS door is reached. It is never printed: it has a secret.
type awsSettings struct {
	endpoint            *url.URL
	region              string
	accessKeyID, secret string
	caBundle            string // PEM file; empty: the system's
}

// awsSettings takes them from the environment if that names an endpoint, else from
// dev.env: never some from the one and some from the other, so that credentials for
// AWS are not used here by mistake.
func (a *app) awsSettings() (*awsSettings, error) {
	get, from := a.getenv, "the environment"
	if get(awsEndpointKMS) == "" && get(awsEndpoint) == "" {
		vars, err := readDevEnv(devEnvFile)
		if err != nil {
			missing := fmt.Errorf("%s is not set. Start `keyholdd dev` and run `set -a; . %s; set +a`, or set it to the address of the AWS door, such as https://kms.example.org:8443", awsEndpoint, devEnvFile)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, missing
			}
			return nil, withHint(missing, "%v", err)
		}
		get, from = func(name string) string { return vars[name] }, devEnvFile
	}
	s := &awsSettings{
		region: firstOf(*a.flags[setRegion], get(awsRegion), get(awsDefaultRegion)), accessKeyID: get(awsAccessKeyID), secret: get(awsSecret),
		caBundle: firstOf(get(awsCABundle), a.getenv(awsCABundle)),
	}
	endpoint := firstOf(get(awsEndpointKMS), get(awsEndpoint))
	if endpoint == "" {
		return nil, fmt.Errorf("%s has no %s: that server has no AWS door", from, awsEndpoint)
	}
	var err error
	if s.endpoint, err = url.Parse(endpoint); err != nil || s.endpoint.Host == "" || s.endpoint.User != nil || strings.Trim(s.endpoint.Path, "/") != "" ||
		s.endpoint.Scheme != "http" && s.endpoint.Scheme != "https" {
		return nil, fmt.Errorf("the endpoint in %s is not of the form http://host:port or https://host:port", from)
	}
	var missing []string
	for _, m := range []struct{ name, value string }{{awsAccessKeyID, s.accessKeyID}, {awsSecret, s.secret}, {awsRegion, s.region}} {
		if m.value == "" {
			missing = append(missing, m.name)
		}
	}
	if missing != nil {
		return nil, withHint(fmt.Errorf("%s has no %s", from, strings.Join(missing, " and no ")),
			"`eval \"$(keyhold access-key create --shell)\"` makes an access key and sets it; the region is one of the server's")
	}
	return s, nil
}

// firstOf returns the first text that is not empty.
func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}
