package grpcapi

import (
	"context"
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// errorDomain is the domain of every ErrorInfo.
const errorDomain = "keyhold"

// statusCodes gives the gRPC code of each exception. An error that says it is
// temporary becomes UNAVAILABLE instead of INTERNAL.
func statusCodes() map[kms.Code]codes.Code {
	return map[kms.Code]codes.Code{
		kms.CodeAccessDenied:         codes.PermissionDenied,
		kms.CodeAlreadyExists:        codes.AlreadyExists,
		kms.CodeDependencyTimeout:    codes.DeadlineExceeded,
		kms.CodeDisabled:             codes.FailedPrecondition,
		kms.CodeDryRun:               codes.FailedPrecondition,
		kms.CodeIncorrectKey:         codes.InvalidArgument,
		kms.CodeInternal:             codes.Internal,
		kms.CodeInvalidAliasName:     codes.InvalidArgument,
		kms.CodeInvalidArn:           codes.InvalidArgument,
		kms.CodeInvalidCiphertext:    codes.InvalidArgument,
		kms.CodeInvalidKeyUsage:      codes.FailedPrecondition,
		kms.CodeInvalidMac:           codes.InvalidArgument,
		kms.CodeInvalidMarker:        codes.InvalidArgument,
		kms.CodeInvalidSignature:     codes.InvalidArgument,
		kms.CodeInvalidState:         codes.FailedPrecondition,
		kms.CodeKeyUnavailable:       codes.Unavailable,
		kms.CodeLimitExceeded:        codes.ResourceExhausted,
		kms.CodeNotFound:             codes.NotFound,
		kms.CodeTag:                  codes.InvalidArgument,
		kms.CodeThrottling:           codes.ResourceExhausted,
		kms.CodeUnknownOperation:     codes.Unimplemented,
		kms.CodeUnsupportedOperation: codes.Unimplemented,
		kms.CodeValidation:           codes.InvalidArgument,
	}
}

// codeOf returns the gRPC code of an exception.
func codeOf(exception kms.Code, temporary bool) codes.Code {
	code, ok := statusCodes()[exception]
	switch {
	case !ok:
		return codes.Internal
	case temporary && code == codes.Internal:
		return codes.Unavailable
	}
	return code
}

// setStatuses says of each item that failed what gRPC would have said of it alone.
func setStatuses(batch *keyholdv1.BatchResponse) {
	for _, r := range batch.GetResults() {
		if e := r.GetError(); e != nil {
			e.GrpcStatus = int32(codeOf(kms.Code(e.GetException()), e.GetTemporary()))
			if e.GetTimedOut() {
				e.GrpcStatus = int32(codes.DeadlineExceeded)
			}
		}
	}
}

// failure turns the core's error into a status and logs, once and in full,
// what the client is not told.
func (s *Server) failure(ctx context.Context, operation, requestID string, err error) error {
	var e *kms.Error
	if !errors.As(err, &e) {
		e = &kms.Error{Code: kms.CodeInternal}
	}
	code := codeOf(e.Code, e.Unavailable)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	if e.Code == kms.CodeInternal || e.Unavailable {
		cause := errors.Unwrap(error(e))
		if cause == nil {
			cause = err
		}
		if code != codes.Canceled {
			s.failed.Warn(ctx, "request failed", "operation", operation, "request_id", requestID, "code", e.Code, "err", cause)
		}
	}
	var more []protoadapt.MessageV1
	if len(e.Violations) > 0 {
		bad := &errdetails.BadRequest{}
		for _, v := range e.Violations {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Description})
		}
		more = append(more, protoadapt.MessageV1Of(bad))
	}
	return withInfo(code, string(e.Code), e.Message, requestID, more)
}

func withInfo(code codes.Code, reason, message, requestID string, more []protoadapt.MessageV1) error {
	if message == "" {
		message = reason
	}
	info := &errdetails.ErrorInfo{Reason: reason, Domain: errorDomain, Metadata: map[string]string{"request_id": requestID}}
	st, err := status.New(code, message).WithDetails(append([]protoadapt.MessageV1{protoadapt.MessageV1Of(info)}, more...)...)
	if err != nil {
		return status.Error(code, message)
	}
	return st.Err()
}
