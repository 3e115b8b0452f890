package awsapi

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

// stsVersion is the only version of the API that there is.
const stsVersion = "2011-06-15"

// formType is the content type of the query protocol.
const formType = "application/x-www-form-urlencoded"

// isQuery tells whether a request is of the query protocol. What names a target is
// not: curl says of every body that it is a form. What botocore presigns, unless
// told otherwise, is a POST with all in the URL, whose sender names no type.
func isQuery(r *http.Request) bool {
	if r.Header.Get("X-Amz-Target") != "" {
		return false
	}
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(kind), formType) ||
		(r.Method == http.MethodGet || r.Method == http.MethodPost) && strings.Contains(r.URL.RawQuery, "Action=")
}

type callerIdentity struct {
	XMLName   xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ GetCallerIdentityResponse"`
	Arn       string   `xml:"GetCallerIdentityResult>Arn"`
	UserID    string   `xml:"GetCallerIdentityResult>UserId"`
	Account   string   `xml:"GetCallerIdentityResult>Account"`
	RequestID string   `xml:"ResponseMetadata>RequestId"`
}

// serveQuery serves what there is of STS.
func (s *Server) serveQuery(ctx context.Context, w http.ResponseWriter, r *http.Request, caller *identity.Caller, body []byte) *failure {
	form, err := url.ParseQuery(r.URL.RawQuery)
	if err == nil && r.Method == http.MethodPost {
		var posted url.Values
		posted, err = url.ParseQuery(string(body))
		for name, values := range posted {
			form[name] = append(form[name], values...)
		}
	}
	if err != nil {
		return &failure{status: http.StatusBadRequest, code: "MalformedQueryString", message: "The query string contains a syntax error."}
	}
	action, version := form["Action"], form["Version"]
	if len(action) != 1 || action[0] != "GetCallerIdentity" || len(version) != 1 || version[0] != stsVersion {
		return &failure{
			status: http.StatusBadRequest, code: "InvalidAction",
			message: fmt.Sprintf("Could not find operation %.64q for version %.16q", strings.Join(action, ","), strings.Join(version, ",")),
		}
	}
	answer, err := s.cfg.Core.Do(ctx, caller, "GetCallerIdentity", &keyholdv1.GetCallerIdentityRequest{})
	id, ok := answer.(*keyholdv1.GetCallerIdentityResponse)
	if err == nil && !ok {
		err = errors.New("GetCallerIdentity was answered with something else")
	}
	if err != nil {
		f := s.failed(ctx, "GetCallerIdentity", caller.RequestID, err)
		switch kms.Code(f.code) {
		case kms.CodeThrottling:
			f.code = codeThrottling(serviceSTS)
		case kms.CodeAccessDenied:
			f.status, f.code = http.StatusForbidden, "AccessDenied"
		default:
			f.status, f.code = http.StatusInternalServerError, codeInternal(serviceSTS)
		}
		return f
	}
	writeXML(w, http.StatusOK, callerIdentity{Arn: id.GetArn(), UserID: id.GetUserId(), Account: id.GetAccount(), RequestID: caller.RequestID})
	return nil
}
