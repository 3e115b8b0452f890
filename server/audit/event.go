package audit

import (
	"strconv"
	"time"
	"unicode/utf8"
)

// Names of CloudTrail's record schema that Keyhold uses.
const (
	EventVersion    = "1.11"
	EventSourceKMS  = "kms.amazonaws.com"
	EventSourceIAM  = "iam.amazonaws.com" // operations on access keys
	EventSourceSTS  = "sts.amazonaws.com" // GetCallerIdentity
	TypeAPICall     = "AwsApiCall"
	TypeService     = "AwsServiceEvent" // not a request: scheduled work, notes of the journal
	ResourceTypeKey = "AWS::KMS::Key"
	// CategoryManagement is what CloudTrail files every KMS event under.
	CategoryManagement = "Management"
)

// maxClientTextBytes is where CloudTrail cuts userAgent and errorMessage.
const maxClientTextBytes = 1024

// Phase tells the two records of an irreversible operation apart.
type Phase string

// Phases of an operation that has two records, and none.
const (
	PhaseNone    Phase = ""
	PhaseIntent  Phase = "intent"  // about to be done
	PhaseOutcome Phase = "outcome" // done, or failed: see errorCode
)

// UserIdentity says who called. Empty members are left out.
type UserIdentity struct {
	Type        string // IAMUser, AssumedRole, Root, AWSService, Unknown, ...
	PrincipalID string
	ARN         string
	AccountID   string
	AccessKeyID string
	UserName    string
	InvokedBy   string
}

// Resource is a key that an event is about.
type Resource struct {
	ARN       string
	AccountID string
	Type      string // empty means ResourceTypeKey
}

// TLSDetails describes the connection. Empty members are left out.
type TLSDetails struct {
	Version                  string // "TLSv1.3"
	CipherSuite              string
	ClientProvidedHostHeader string
}

// Member is one string-valued member of additionalEventData.
type Member struct{ Key, Value string }

// Event is one record in CloudTrail's schema
// (docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html).
// Empty optional members are left out. The zero value of EventType, EventSource and
// EventCategory stands for what a KMS request has.
//
// An Event never holds plaintext, key bytes, signatures or credentials; nothing
// here can check that.
type Event struct {
	UserIdentity    UserIdentity
	EventTime       time.Time // written in UTC, to the second
	EventSource     string
	EventName       string
	AWSRegion       string
	SourceIPAddress string
	UserAgent       string // cut at 1 KiB
	ErrorCode       string
	ErrorMessage    string // cut at 1 KiB

	// RequestParameters and ResponseElements are JSON values, encoded by the caller
	// and copied unchecked: they must be valid JSON. Empty means null.
	RequestParameters []byte
	ResponseElements  []byte

	// Phase and Additional make up additionalEventData. A key named "phase" in
	// Additional is dropped if Phase is set.
	Phase      Phase
	Additional []Member

	RequestID          string
	EventID            string // a UUID, unique to the record
	ReadOnly           bool
	Resources          []Resource
	EventType          string
	EventCategory      string
	RecipientAccountID string
	TLS                TLSDetails
}

// AppendJSON appends the event as one JSON object, without a newline, to dst. The
// result is valid JSON and valid UTF-8 for any bytes in the string fields:
// invalid UTF-8 becomes U+FFFD, byte by byte as encoding/json does. It does not
// allocate if dst has room.
func (e *Event) AppendJSON(dst []byte) []byte {
	dst = append(dst, `{"eventVersion":"`+EventVersion+`","userIdentity":`...)
	dst = e.UserIdentity.appendJSON(dst)
	dst = append(dst, `,"eventTime":"`...)
	dst = e.EventTime.UTC().AppendFormat(dst, "2006-01-02T15:04:05Z")
	dst = append(dst, '"')
	dst = appendMember(dst, `,"eventSource":`, orText(e.EventSource, EventSourceKMS))
	dst = appendMember(dst, `,"eventName":`, e.EventName)
	dst = appendMember(dst, `,"awsRegion":`, e.AWSRegion)
	dst = appendMember(dst, `,"sourceIPAddress":`, e.SourceIPAddress)
	dst = appendMember(dst, `,"userAgent":`, cutText(e.UserAgent))
	dst = appendOptional(dst, `,"errorCode":`, e.ErrorCode)
	dst = appendOptional(dst, `,"errorMessage":`, cutText(e.ErrorMessage))
	dst = appendRaw(dst, `,"requestParameters":`, e.RequestParameters)
	dst = appendRaw(dst, `,"responseElements":`, e.ResponseElements)
	dst = e.appendAdditional(dst)
	dst = appendOptional(dst, `,"requestID":`, e.RequestID)
	dst = appendMember(dst, `,"eventID":`, e.EventID)
	dst = append(dst, `,"readOnly":`...)
	dst = strconv.AppendBool(dst, e.ReadOnly)
	dst = e.appendResources(dst)
	dst = appendMember(dst, `,"eventType":`, orText(e.EventType, TypeAPICall))
	dst = append(dst, `,"managementEvent":true`...)
	dst = appendOptional(dst, `,"recipientAccountId":`, e.RecipientAccountID)
	dst = appendMember(dst, `,"eventCategory":`, orText(e.EventCategory, CategoryManagement))
	dst = e.TLS.appendJSON(dst)
	return append(dst, '}')
}

func (u *UserIdentity) appendJSON(dst []byte) []byte {
	dst = appendMember(dst, `{"type":`, u.Type)
	dst = appendOptional(dst, `,"principalId":`, u.PrincipalID)
	dst = appendOptional(dst, `,"arn":`, u.ARN)
	dst = appendOptional(dst, `,"accountId":`, u.AccountID)
	dst = appendOptional(dst, `,"accessKeyId":`, u.AccessKeyID)
	dst = appendOptional(dst, `,"userName":`, u.UserName)
	dst = appendOptional(dst, `,"invokedBy":`, u.InvokedBy)
	return append(dst, '}')
}

func (e *Event) appendAdditional(dst []byte) []byte {
	if e.Phase == PhaseNone && len(e.Additional) == 0 {
		return dst
	}
	dst = append(dst, `,"additionalEventData":{`...)
	sep := false
	if e.Phase != PhaseNone {
		dst = appendMember(dst, `"phase":`, string(e.Phase))
		sep = true
	}
	for _, m := range e.Additional {
		if e.Phase != PhaseNone && m.Key == "phase" {
			continue // one member of a name: parsers differ on which they take
		}
		if sep {
			dst = append(dst, ',')
		}
		sep = true
		dst = appendString(dst, m.Key)
		dst = append(dst, ':')
		dst = appendString(dst, m.Value)
	}
	return append(dst, '}')
}

func (e *Event) appendResources(dst []byte) []byte {
	if len(e.Resources) == 0 {
		return dst
	}
	dst = append(dst, `,"resources":[`...)
	for i := range e.Resources {
		r := &e.Resources[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, '{')
		if r.AccountID != "" {
			dst = appendMember(dst, `"accountId":`, r.AccountID)
			dst = append(dst, ',')
		}
		dst = appendMember(dst, `"type":`, orText(r.Type, ResourceTypeKey))
		dst = appendMember(dst, `,"ARN":`, r.ARN)
		dst = append(dst, '}')
	}
	return append(dst, ']')
}

func (t *TLSDetails) appendJSON(dst []byte) []byte {
	if *t == (TLSDetails{}) {
		return dst
	}
	dst = append(dst, `,"tlsDetails":`...)
	open := len(dst)
	dst = appendOptional(dst, `,"tlsVersion":`, t.Version)
	dst = appendOptional(dst, `,"cipherSuite":`, t.CipherSuite)
	dst = appendOptional(dst, `,"clientProvidedHostHeader":`, t.ClientProvidedHostHeader)
	dst[open] = '{' // in place of the first comma
	return append(dst, '}')
}

// appendMember appends label, which is already JSON, and s as a string.
func appendMember(dst []byte, label, s string) []byte {
	return appendString(append(dst, label...), s)
}

func appendOptional(dst []byte, label, s string) []byte {
	if s == "" {
		return dst
	}
	return appendMember(dst, label, s)
}

func appendRaw(dst []byte, label string, raw []byte) []byte {
	dst = append(dst, label...)
	if len(raw) == 0 {
		return append(dst, "null"...)
	}
	return append(dst, raw...)
}

func orText(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// cutText cuts s at maxClientTextBytes, not inside a character.
func cutText(s string) string {
	if len(s) <= maxClientTextBytes {
		return s
	}
	n := maxClientTextBytes
	for range utf8.UTFMax - 1 {
		if utf8.RuneStart(s[n]) {
			break
		}
		n--
	}
	return s[:n]
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. RFC 8259, section 7.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0 // s[start:i] is plain and not yet copied
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
			dst = append(dst, s[start:i]...)
			dst = append(dst, "\ufffd"...)
		} else {
			dst = append(dst, s[start:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
		}
		i++
		start = i
	}
	return append(append(dst, s[start:]...), '"')
}
