package kms

import (
	"context"
	"fmt"
	"slices"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// operation is one RPC of the proto with its implementation.
type operation struct {
	row
	name   string
	spec   *keyholdv1.Operation
	input  protoreflect.MessageDescriptor
	lists  []boundedList                  // the request's lists
	nested []protoreflect.FieldDescriptor // the request's messages and lists of them
	blob   protoreflect.FieldDescriptor   // the field of a ciphertext, or nil
	fields []protoreflect.FieldDescriptor
	items  map[protoreflect.FieldNumber]*batchable // of a batch: what it may carry
	// unbuilt are the parts of the request that are refused.
	unbuilt []unbuiltPart
}

// row is what the core adds to the proto's declaration of an operation.
type row struct {
	// needs is the state that each named key must be in (step 7).
	needs stateRule
	// usage that each named key must have (step 8). Unspecified: any.
	usage keyholdv1.KeyUsageType
	// byIDOnly: keys are named by id or ARN, not by alias.
	byIDOnly bool
	// protected: its records may use the audit log's reserve.
	protected bool
	// valid checks what the proto's constraints cannot say (step 2). Optional.
	valid func(req proto.Message) error
	// check checks the request against the resolved keys (step 8). Optional.
	check func(s *Service, c *call) error
	// act does the work (step 11).
	act func(ctx context.Context, s *Service, c *call) (proto.Message, error)
}

// rows is the table of all operations.
func rows() map[string]row {
	const (
		encrypt = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT
		sign    = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY
		mac     = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC
		agree   = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_KEY_AGREEMENT
		wrap    = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_WRAP_UNWRAP
	)
	return map[string]row{
		"CreateKey":            {valid: valid(validCreateKey), check: check((*Service).checkCreateKey), act: act((*Service).createKey)},
		"DescribeKey":          {act: act((*Service).describeKey)},
		"ListKeys":             {act: act((*Service).listKeys)},
		"EnableKey":            {needs: needsNotPending, byIDOnly: true, act: act((*Service).enableKey)},
		"DisableKey":           {needs: needsNotPending, byIDOnly: true, protected: true, act: act((*Service).disableKey)},
		"ScheduleKeyDeletion":  {needs: needsNotPending, byIDOnly: true, protected: true, act: act((*Service).scheduleKeyDeletion)},
		"CancelKeyDeletion":    {needs: needsPending, byIDOnly: true, protected: true, act: act((*Service).cancelKeyDeletion)},
		"UpdateKeyDescription": {needs: needsNotPending, byIDOnly: true, act: act((*Service).updateKeyDescription)},
		"CreateAlias":          {needs: needsNotPending, byIDOnly: true, valid: valid(validCreateAlias), act: act((*Service).createAlias)},
		"UpdateAlias":          {needs: needsNotPending, byIDOnly: true, valid: valid(validUpdateAlias), act: act((*Service).updateAlias)},
		"DeleteAlias":          {valid: valid(validDeleteAlias), act: act((*Service).deleteAlias)},
		"ListAliases":          {byIDOnly: true, act: act((*Service).listAliases)},

		"GetKeyPolicy":     {byIDOnly: true, act: act((*Service).getKeyPolicy)},
		"ListKeyPolicies":  {byIDOnly: true, valid: valid(validListKeyPolicies), act: act((*Service).listKeyPolicies)},
		"TagResource":      {needs: needsNotPending, byIDOnly: true, valid: valid(validTagResource), act: act((*Service).tagResource)},
		"UntagResource":    {needs: needsNotPending, byIDOnly: true, valid: valid(validUntagResource), act: act((*Service).untagResource)},
		"ListResourceTags": {byIDOnly: true, act: act((*Service).listResourceTags)},

		"Encrypt":                             {needs: needsEnabled, usage: encrypt, valid: valid(validEncrypt), check: check((*Service).checkEncrypt), act: act((*Service).encrypt)},
		"Decrypt":                             {needs: needsEnabled, usage: encrypt, valid: valid(validDecrypt), check: check((*Service).checkDecrypt), act: act((*Service).decrypt)},
		"ReEncrypt":                           {needs: needsEnabled, usage: encrypt, valid: valid(validReEncrypt), check: check((*Service).checkReEncrypt), act: act((*Service).reEncrypt)},
		"GenerateDataKey":                     {needs: needsEnabled, usage: encrypt, valid: valid(validGenerateDataKey), check: check((*Service).checkGenerateDataKey), act: act((*Service).generateDataKey)},
		"GenerateDataKeyWithoutPlaintext":     {needs: needsEnabled, usage: encrypt, valid: valid(validGenerateDataKeyWithoutPlaintext), check: check((*Service).checkGenerateDataKeyWithoutPlaintext), act: act((*Service).generateDataKeyWithoutPlaintext)},
		"GenerateDataKeyPair":                 {needs: needsEnabled, usage: encrypt, valid: valid(validGenerateDataKeyPair), check: check((*Service).checkGenerateDataKeyPair), act: act((*Service).generateDataKeyPair)},
		"GenerateDataKeyPairWithoutPlaintext": {needs: needsEnabled, usage: encrypt, valid: valid(validGenerateDataKeyPairWithoutPlaintext), check: check((*Service).checkGenerateDataKeyPairWithoutPlaintext), act: act((*Service).generateDataKeyPairWithoutPlaintext)},
		"GenerateRandom":                      {act: act((*Service).generateRandom)},
		"Sign":                                {needs: needsEnabled, usage: sign, valid: valid(validSign), check: check((*Service).checkSign), act: act((*Service).sign)},
		"Verify":                              {needs: needsEnabled, usage: sign, valid: valid(validVerify), check: check((*Service).checkVerify), act: act((*Service).verify)},
		"GetPublicKey":                        {needs: needsEnabled, check: check((*Service).checkGetPublicKey), act: act((*Service).getPublicKey)},
		"GenerateMac":                         {needs: needsEnabled, usage: mac, check: check((*Service).checkGenerateMac), act: act((*Service).generateMac)},
		"VerifyMac":                           {needs: needsEnabled, usage: mac, check: check((*Service).checkVerifyMac), act: act((*Service).verifyMac)},
		"DeriveSharedSecret":                  {needs: needsEnabled, usage: agree, check: check((*Service).checkDeriveSharedSecret), act: act((*Service).deriveSharedSecret)},
		"WrapKey":                             {needs: needsEnabled, usage: wrap, valid: valid(validWrapKey), check: check((*Service).checkWrapKey), act: act((*Service).wrapKey)},
		"UnwrapKey":                           {needs: needsEnabled, usage: wrap, check: check((*Service).checkUnwrapKey), act: act((*Service).unwrapKey)},
		"ExportKey":                           {needs: needsEnabled, check: check((*Service).checkExportKey), act: act((*Service).exportKey)},
		"Batch":                               {act: act((*Service).batch)},

		"CreateAccessKey":      {check: check((*Service).checkCreateAccessKey), act: act((*Service).createAccessKey)},
		"ListAccessKeys":       {check: check((*Service).checkListAccessKeys), act: act((*Service).listAccessKeys)},
		"UpdateAccessKey":      {protected: true, check: check((*Service).checkUpdateAccessKey), act: act((*Service).updateAccessKey)},
		"DeleteAccessKey":      {protected: true, check: check((*Service).checkDeleteAccessKey), act: act((*Service).deleteAccessKey)},
		"GetAccessKeyLastUsed": {check: check((*Service).checkGetAccessKeyLastUsed), act: act((*Service).getAccessKeyLastUsed)},
		"GetCallerIdentity":    {act: act((*Service).getCallerIdentity)},
	}
}

// act, check and valid give typed functions the table's types. That the types
// fit the method is checked once, in buildOperations, so that the assertions
// cannot fail on a request.
func act[Req, Resp proto.Message](f func(*Service, context.Context, *call, Req) (Resp, error)) func(context.Context, *Service, *call) (proto.Message, error) {
	return func(ctx context.Context, s *Service, c *call) (proto.Message, error) {
		resp, err := f(s, ctx, c, c.req.(Req)) //nolint:forcetypeassert // Do checked the descriptor
		if err != nil {
			return nil, err
		}
		return resp, nil
	}
}

func check[Req proto.Message](f func(*Service, *call, Req) error) func(*Service, *call) error {
	return func(s *Service, c *call) error { return f(s, c, c.req.(Req)) } //nolint:forcetypeassert // Do checked the descriptor
}

func valid[Req proto.Message](f func(Req) error) func(proto.Message) error {
	return func(req proto.Message) error { return f(req.(Req)) } //nolint:forcetypeassert // Do checked the descriptor
}

// ciphertextField is the resource field that names a key by a ciphertext.
const ciphertextField = "ciphertext_blob"

// buildOperations joins the table with the descriptors. A method without a
// row, unless it is declared to be unbuilt, a row without a method and a method
// without options are errors.
func buildOperations() (map[string]*operation, error) {
	table := rows()
	ops := make(map[string]*operation)
	for _, sd := range Services() {
		for i := range sd.Methods().Len() {
			md := sd.Methods().Get(i)
			name := string(md.Name())
			r, have := table[name]
			op, err := newOperation(md, r)
			if err != nil {
				return nil, err
			}
			if have == op.spec.GetUnbuilt() || ops[name] != nil {
				return nil, fmt.Errorf("kms: method %s has no implementation, or two, or one although it is declared to have none", md.FullName())
			}
			ops[name] = op
		}
	}
	if err := joinBatches(ops); err != nil {
		return nil, err
	}
	for name := range table {
		if ops[name] != nil {
			continue
		}
		return nil, fmt.Errorf("kms: the table has a row for %s, which the proto has no method for", name)
	}
	return ops, nil
}

// newOperation reads what the descriptors say of a method.
func newOperation(md protoreflect.MethodDescriptor, r row) (*operation, error) {
	op := &operation{row: r, name: string(md.Name()), input: md.Input(), unbuilt: unbuiltParts(md.Input())}
	for i := range md.Input().Fields().Len() {
		fd := md.Input().Fields().Get(i)
		if fd.IsList() {
			rules, err := protovalidate.ResolveFieldRules(fd)
			if err != nil {
				return nil, fmt.Errorf("kms: rules of %s: %w", fd.FullName(), err)
			}
			op.lists = append(op.lists, boundedList{fd: fd, most: rules.GetRepeated().GetMaxItems()})
		}
		if fd.Message() != nil && !fd.IsMap() {
			op.nested = append(op.nested, fd)
		}
	}
	spec, ok := proto.GetExtension(md.Options(), keyholdv1.E_Operation).(*keyholdv1.Operation)
	if !ok || spec == nil || spec.GetPlane() == keyholdv1.Plane_PLANE_UNSPECIFIED || (len(spec.GetPermissions()) == 0) != spec.GetBatch() {
		return nil, fmt.Errorf("kms: method %s lacks its options", md.FullName())
	}
	op.spec = spec
	for _, p := range spec.GetPermissions() {
		fd := md.Input().Fields().ByName(protoreflect.Name(p.GetResourceField()))
		if fd == nil && p.GetResourceField() != "" {
			return nil, fmt.Errorf("kms: method %s names the resource field %q, which it lacks", md.FullName(), p.GetResourceField())
		}
		if p.GetResourceField() == ciphertextField {
			op.blob = fd
		}
		op.fields = append(op.fields, fd)
	}
	return op, nil
}

// Services returns the descriptors of all services of the API.
func Services() []protoreflect.ServiceDescriptor {
	return []protoreflect.ServiceDescriptor{
		keyholdv1.File_keyhold_v1_cryptography_service_proto.Services().ByName("CryptographyService"),
		keyholdv1.File_keyhold_v1_key_management_service_proto.Services().ByName("KeyManagementService"),
		keyholdv1.File_keyhold_v1_key_access_service_proto.Services().ByName("KeyAccessService"),
		keyholdv1.File_keyhold_v1_key_material_service_proto.Services().ByName("KeyMaterialService"),
		keyholdv1.File_keyhold_v1_custom_key_store_service_proto.Services().ByName("CustomKeyStoreService"),
		keyholdv1.File_keyhold_v1_access_key_service_proto.Services().ByName("AccessKeyService"),
	}
}

// declares reports whether the operation may answer with the exception.
func (op *operation) declares(code Code) bool {
	return slices.Contains(op.spec.GetErrors(), string(code))
}

// mutates reports whether the operation changes what outlives the call.
func (op *operation) mutates() bool { return !op.spec.GetReadOnly() }

// stateRule says which key states an operation works in.
type stateRule int

const (
	needsNothing stateRule = iota
	needsEnabled
	needsNotPending
	needsPending
)

// checkState is step 7, with AWS's words.
func (n stateRule) checkState(arn string, state keyholdv1.KeyState) error {
	pending := state == keyholdv1.KeyState_KEY_STATE_PENDING_DELETION
	switch {
	case n == needsEnabled && state == keyholdv1.KeyState_KEY_STATE_DISABLED:
		return errorf(CodeDisabled, "%s is disabled.", arn)
	case n == needsEnabled && pending, n == needsNotPending && pending:
		return errorf(CodeInvalidState, "%s is pending deletion.", arn)
	case n == needsPending && !pending:
		return errorf(CodeInvalidState, "%s is not pending deletion.", arn)
	}
	return nil
}
