package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/keyhold/keyhold/client"
)

// usageError is a command line that makes no sense.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// hintError is an error with what to do about it.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// withHint adds what to do to err. A nil err stays nil.
func withHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hintError{err, fmt.Sprintf(format, args...)}
}

// rpcError makes what a call returned say the exception's name and the request
// id. Everything else passes through.
func rpcError(err error) error {
	if e, ok := client.ErrorFrom(err); ok {
		return e
	}
	return err
}

// notEncoded makes wrong usage of what gRPC says of an argument that it could not
// encode.
func notEncoded(err error) error {
	var e *client.Error
	if errors.As(err, &e) && e.Status == codes.Internal && strings.Contains(e.Message, "invalid UTF-8") {
		return usagef("an argument is not UTF-8: names, descriptions, tags and encryption contexts must be")
	}
	return err
}

// addConnectionHint says what to look at when the server could not be reached
// or did not accept the caller. Only what has no exception's name is about the
// connection.
func addConnectionHint(err error, conf *config) error {
	var hinted *hintError
	var e *client.Error
	if errors.As(err, &hinted) || !errors.As(err, &e) || e.Exception != "" {
		return err
	}
	where := fmt.Sprintf("KEYHOLD_ADDR is %s (%s)", conf.text(setAddr), conf.source(setAddr))
	switch {
	case e.Status == codes.DeadlineExceeded:
		return withHint(err, "there was no answer within %v; --timeout allows more. %s", conf.timeout(), where)
	case e.Status == codes.Unauthenticated:
		return withHint(err, "the server does not know the certificate %s (KEYHOLD_CERT)", conf.text(setCert))
	case e.Status != codes.Unavailable:
		return err
	case strings.Contains(e.Message, "failed to verify certificate"):
		return withHint(err, "the server's certificate must be signed by KEYHOLD_CA (%s) and carry the name of "+
			"the address, or of KEYHOLD_SERVER_NAME. %s", orWord(conf.text(setCA), "not set, so the system's roots count"), where)
	case strings.Contains(e.Message, "remote error: tls"):
		return withHint(err, "the server did not accept the certificate %s (KEYHOLD_CERT)", conf.text(setCert))
	case hungUp(e.Message):
		return withHint(err, "the server hung up: it may not have accepted the certificate %s (KEYHOLD_CERT). %s", conf.text(setCert), where)
	}
	return withHint(err, "is the server running, and reachable from here? %s", where)
}

// hungUp tells whether the server closed a connection that it had accepted.
// With TLS 1.3 a client writes before it learns that its certificate was
// refused, and the refusal may be lost behind the broken connection.
func hungUp(message string) bool {
	return strings.Contains(message, "broken pipe") || strings.Contains(message, "connection reset") || strings.Contains(message, "EOF")
}

// printError writes an error for people: one line, then the fields at fault,
// then what to do.
func printError(w io.Writer, err error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "keyhold: %s\n", printable(err.Error()))
	var e *client.Error
	if errors.As(err, &e) {
		for _, v := range e.Violations {
			if !strings.Contains(e.Message, v.Description) {
				fmt.Fprintf(&b, "  %s: %s\n", printable(v.Field), printable(v.Description))
			}
		}
	}
	var hinted *hintError
	if errors.As(err, &hinted) {
		fmt.Fprintf(&b, "hint: %s\n", printable(hinted.hint))
	}
	_, _ = w.Write(b.Bytes()) // nobody is left to tell
}

func orWord(s, word string) string {
	if s == "" {
		return word
	}
	return s
}
