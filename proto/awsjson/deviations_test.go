package awsjson_test

// What several deviations have for a reason.
const (
	extension  = "extension of Keyhold"
	option     = "how the proto declares operations; never on the wire"
	notBuilt   = "it is not built, or a part of its request is not"
	bounded    = "nothing in a request is unbounded; a key has at most 50 tags"
	documented = "AWS documents this limit, which is narrower than its model's"
)

// deviations are all differences between the proto and AWS's model, in the
// words of TestFacts, each with its reason. docs/aws-compat.md tells users.
var deviations = map[string]string{
	"Batch: extra operation":             extension,
	"BatchError: extra message":          extension,
	"BatchFieldViolation: extra message": extension,
	"BatchItem: extra message":           extension,
	"BatchRequest: extra message":        extension,
	"BatchResponse: extra message":       extension,
	"BatchResult: extra message":         extension,
	"ConnectCustomKeyStore: answers UnsupportedOperationException undeclared":    notBuilt,
	"CreateCustomKeyStore: answers UnsupportedOperationException undeclared":     notBuilt,
	"CreateGrant: answers UnsupportedOperationException undeclared":              notBuilt,
	"CreateGrantRequest.Operations: max is 50, not none":                         bounded,
	"CreateKeyRequest.KeyCustody: extra member":                                  extension,
	"CreateKeyRequest.Tags: max is 50, not none":                                 bounded,
	"Decrypt: answers UnsupportedOperationException undeclared":                  notBuilt,
	"DecryptRequest.CiphertextBlob: required is true":                            "absent only with DryRunModifiers, which are not built",
	"DecryptRequest.DryRunModifiers: max is 1, not none":                         bounded,
	"DeleteCustomKeyStore: answers UnsupportedOperationException undeclared":     notBuilt,
	"DeriveSharedSecret: answers UnsupportedOperationException undeclared":       notBuilt,
	"DescribeCustomKeyStores: answers UnsupportedOperationException undeclared":  notBuilt,
	"DisconnectCustomKeyStore: answers UnsupportedOperationException undeclared": notBuilt,
	"ExportKey: extra operation":                                                 extension,
	"ExportKeyRequest: extra message":                                            extension,
	"ExportKeyResponse: extra message":                                           extension,
	"GenerateDataKey: answers UnsupportedOperationException undeclared":          notBuilt,
	"GenerateRandomRequest.NumberOfBytes: required is true":                      "AWS has no default for it and refuses its absence",
	"GetKeyLastUsage: answers UnsupportedOperationException undeclared":          notBuilt,
	"GetParametersForImportResponse.PublicKey: is sensitive and not redacted":    "it is public: AWS took a shape that is used for plaintexts too",
	"KeyCustodyType: extra enum":                                                 extension,
	"KeyMetadata.KeyCustody: extra member":                                       extension,
	"KeyMetadata.WrappingAlgorithms: extra member":                               extension,
	"KeyUsageType: extra value WRAP_UNWRAP":                                      extension,
	"ListAliasesRequest.Limit: max is 100, not 1000":                             documented,
	"ListGrants: answers UnsupportedOperationException undeclared":               notBuilt,
	"ListGrantsRequest.Limit: max is 100, not 1000":                              documented,
	"ListResourceTagsRequest.Limit: max is 50, not 1000":                         documented,
	"ListRetirableGrants: answers UnsupportedOperationException undeclared":      notBuilt,
	"ListRetirableGrantsRequest.Limit: max is 100, not 1000":                     documented,
	"Operation: extra message":                                                   option,
	"Permission: extra message":                                                  option,
	"Plane: extra enum":                                                          option,
	"ReEncrypt: answers UnsupportedOperationException undeclared":                notBuilt,
	"ReEncryptRequest.CiphertextBlob: required is true":                          "absent only with DryRunModifiers, which are not built",
	"ReEncryptRequest.DryRunModifiers: max is 1, not none":                       bounded,
	"ReplicateKeyRequest.Tags: max is 50, not none":                              bounded,
	"RetireGrant: answers UnsupportedOperationException undeclared":              notBuilt,
	"RevokeGrant: answers UnsupportedOperationException undeclared":              notBuilt,
	"ScheduleKeyDeletionRequest.PendingWindowInDays: max is 30, not 365":         documented,
	"ScheduleKeyDeletionRequest.PendingWindowInDays: min is 7, not 1":            documented,
	"Sign: answers UnsupportedOperationException undeclared":                     notBuilt,
	"TagResourceRequest.Tags: max is 50, not none":                               bounded,
	"UntagResourceRequest.TagKeys: max is 50, not none":                          bounded,
	"UnwrapKey: extra operation":                                                 extension,
	"UnwrapKeyRequest: extra message":                                            extension,
	"UnwrapKeyResponse: extra message":                                           extension,
	"UpdateCustomKeyStore: answers UnsupportedOperationException undeclared":     notBuilt,
	"Verify: answers UnsupportedOperationException undeclared":                   notBuilt,
	"WrapKey: extra operation":                                                   extension,
	"WrapKeyRequest: extra message":                                              extension,
	"WrapKeyResponse: extra message":                                             extension,
	"WrappingAlgorithmSpec: extra enum":                                          extension,
}
