// Package keyholdv1 is the API of Keyhold, generated from the proto files beside
// it: messages, gRPC stubs, and the options of each operation (permissions, plane,
// declared errors). Nothing but this comment is written by hand; package client
// connects to a server.
//
// Names and semantics are those of the AWS KMS API. The constraints of fields are
// declared with protovalidate and hold for every way in.
//
// Fields that carry secrets bear debug_redact, which Go's protobuf does not obey:
// a message that is logged or printed shows them.
package keyholdv1
