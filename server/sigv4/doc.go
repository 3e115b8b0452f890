// Package sigv4 verifies requests that are signed with AWS Signature Version 4
// (AWS4-HMAC-SHA256): who signed, and that method, path, query, signed headers
// and body are what was signed. It knows nothing of KMS, accounts or storage;
// secrets come through [Credentials].
//
// Sources: AWS General Reference and IAM User Guide, "AWS Signature Version 4
// for API requests": "Elements of a request signature", "Create a signed
// request" (the steps that the code names), "Troubleshoot Signature Version 4";
// the "Signature Version 4 Test Suite" of the former; for the window of five
// minutes what AWS KMS and the XKS proxy API specification (Authentication) do.
// The wording of refusals is AWS's where it is known.
//
// # What is accepted
//
// One Authorization header, or, where [Config.AllowQuery] is set, the presigned
// query form; never both. host (or :authority, as the XKS specification calls it
// on HTTP/2) must be signed, and in the header form the date that counts. Every
// X-Amz-* header of the request must be signed, in both forms: AWS asks signers
// for it, and X-Amz-Target says which operation a body is for. In the query form a
// parameter of the same name and value will do. The body is always
// covered, by its hash in the canonical request; X-Amz-Content-Sha256 is optional
// and must agree. UNSIGNED-PAYLOAD needs [Config.AllowUnsignedPayload], streaming
// signatures are not implemented, and neither is Signature Version 4A.
//
// # Where it is stricter than AWS
//
// What two parsers might read differently is refused instead of being guessed:
// invalid percent-escapes in the query, a repeated X-Amz-* header or parameter,
// a SignedHeaders list that is not in order, control characters, absolute-form
// targets. A path that is not in normal form (empty or dot segments) is refused
// unless [Config.NormalizePath] is set, because a door routes by the path as it
// was sent and the signature would be for another one.
//
// A presigned request is good for [Config.MaxExpires] at most, a quarter of an hour
// unless it says otherwise, also where X-Amz-Expires allows a week: as with AWS's STS.
//
// # What it does not do
//
// Replays within the window are not found: AWS KMS, which calls an XKS proxy,
// repeats a request byte for byte. Nothing is rate-limited or recorded here.
package sigv4
