package kms

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/keyhold/keyhold/proto/awsjson"
)

// awsName returns AWS's spelling of an enum value.
func awsName(e protoreflect.Enum) string { return awsjson.EnumName(e) }

// keyName is a parsed name of a key: an id or an alias, with the account and
// region that an ARN gives.
type keyName struct {
	id      KeyID
	alias   string // with its "alias/"
	account AccountID
	region  Region
	isARN   bool
}

// parseKeyName parses the four forms of a key's name. The error says what is
// wrong in AWS's words; which exception it is depends on the operation.
func parseKeyName(s string, account AccountID, region Region) (keyName, string) {
	n := keyName{account: account, region: region}
	resource := s
	if strings.HasPrefix(s, "arn:") {
		parts := strings.SplitN(s, ":", 6)
		if len(parts) != 6 || parts[1] != "aws" || parts[2] != "kms" || !AccountID(parts[4]).Valid() || parts[3] == "" {
			return keyName{}, "Invalid arn " + clip(s)
		}
		n.isARN, n.region, n.account = true, Region(parts[3]), AccountID(parts[4])
		resource = parts[5]
		if n.region != region {
			return keyName{}, "Invalid arn " + clip(parts[3])
		}
		id, isKey := strings.CutPrefix(resource, "key/")
		isAlias := strings.HasPrefix(resource, aliasPrefix)
		switch {
		case isKey && strings.HasPrefix(id, aliasPrefix), !isKey && !isAlias:
			return keyName{}, "Invalid arn " + clip(s)
		case isKey:
			resource = id
		}
	}
	if strings.HasPrefix(resource, aliasPrefix) {
		n.alias = resource
		return n, ""
	}
	n.id = KeyID(resource)
	if _, ok := n.id.bytes(); !ok {
		return keyName{}, "Invalid keyId '" + clip(s) + "'"
	}
	return n, ""
}

// clip keeps hostile input from filling error texts and logs.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

const aliasPrefix = "alias/"

// checkAliasName refuses what the proto's pattern lets through. AWS reserves
// alias/aws/ for itself.
func checkAliasName(name string) string {
	rest, ok := strings.CutPrefix(name, aliasPrefix)
	switch {
	case !ok:
		return "An alias name must begin with \"alias/\"."
	case rest == "":
		return "An alias name must not be empty after \"alias/\"."
	case strings.ContainsRune(rest, ':'):
		return clip(name) + " contains invalid characters for an alias"
	case strings.HasPrefix(rest, "aws/"):
		return "Alias names that begin with \"alias/aws/\" are reserved."
	}
	return ""
}
