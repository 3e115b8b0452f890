package grpcapi_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/grpcapi"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

// infoOf returns the ErrorInfo of a status, which every refusal has.
func infoOf(t *testing.T, err error) *errdetails.ErrorInfo {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	t.Fatalf("%v has no ErrorInfo", err)
	return nil
}

// TestEveryMethodIsServed calls each RPC of the proto through the wire and
// wants the core to see that operation with that request.
func TestEveryMethodIsServed(t *testing.T) {
	t.Parallel()
	c := &core{do: func(_ context.Context, caller *identity.Caller, operation string, req proto.Message) (proto.Message, error) {
		if caller.Principal.ARN != appARN || caller.Subject != app || caller.Door != "grpc" || caller.Region != "us-east-1" ||
			caller.SourceIP != "127.0.0.1" || caller.TLSVersion != "TLSv1.3" || caller.CipherSuite == "" || caller.RequestID == "" ||
			!strings.HasPrefix(caller.UserAgent, "door-test") {
			return nil, fmt.Errorf("caller is %+v", caller)
		}
		if got := string(req.ProtoReflect().Descriptor().Name()); got != operation+"Request" {
			return nil, fmt.Errorf("%s was given a %s", operation, got)
		}
		out, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("keyhold.v1." + operation + "Response"))
		if err != nil {
			return nil, err
		}
		return out.New().Interface(), nil
	}}
	conn := open(t, c).app(t)
	for _, sd := range kms.Services() {
		for i := range sd.Methods().Len() {
			md := sd.Methods().Get(i)
			in, err := protoregistry.GlobalTypes.FindMessageByName(md.Input().FullName())
			if err != nil {
				t.Fatal(err)
			}
			out, err := protoregistry.GlobalTypes.FindMessageByName(md.Output().FullName())
			if err != nil {
				t.Fatal(err)
			}
			var header metadata.MD
			method := "/" + string(sd.FullName()) + "/" + string(md.Name())
			if err := conn.Invoke(t.Context(), method, in.New().Interface(), out.New().Interface(), grpc.Header(&header)); err != nil {
				t.Errorf("%s: %v", method, err)
			}
			if id := header.Get("keyhold-request-id"); len(id) != 1 || len(id[0]) != 36 {
				t.Errorf("%s: request id %q", method, id)
			}
			if !slices.Contains(c.calls, string(md.Name())) {
				t.Errorf("%s did not reach the core", method)
			}
		}
	}
	err := conn.Invoke(t.Context(), "/keyhold.v1.CryptographyService/Nonsense", &keyholdv1.EncryptRequest{}, &keyholdv1.EncryptResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("an unknown method: %v, want UNIMPLEMENTED", err)
	}
}

// TestStatusOfEveryCode wants each exception to become a status whose
// ErrorInfo names it.
func TestStatusOfEveryCode(t *testing.T) {
	t.Parallel()
	var answer error
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return nil, answer
	}}
	client := keyholdv1.NewCryptographyServiceClient(open(t, c).app(t))
	call := func() error {
		_, err := client.GenerateRandom(t.Context(), &keyholdv1.GenerateRandomRequest{})
		return err
	}
	for _, code := range kms.Codes() {
		answer = &kms.Error{Code: code, Message: "what it says"}
		err := call()
		st := status.Convert(err)
		if st.Code() == codes.OK || st.Code() == codes.Unknown || (st.Code() == codes.Internal) != (code == kms.CodeInternal) {
			t.Errorf("%s became %s", code, st.Code())
		}
		info := infoOf(t, err)
		if info.GetReason() != string(code) || info.GetDomain() != "keyhold" || info.GetMetadata()["request_id"] == "" || st.Message() != "what it says" {
			t.Errorf("%s became %v, %q", code, info, st.Message())
		}
	}
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{&kms.Error{Code: kms.CodeInternal, Unavailable: true}, codes.Unavailable},
		{&kms.Error{Code: kms.CodeInvalidCiphertext}, codes.InvalidArgument},
		{errors.New("a secret cause"), codes.Internal},
	} {
		answer = tt.err
		err := call()
		if status.Code(err) != tt.want || strings.Contains(err.Error(), "secret cause") {
			t.Errorf("%v became %v, want %s without its cause", tt.err, err, tt.want)
		}
	}
}

func TestViolationsCrossTheWire(t *testing.T) {
	t.Parallel()
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return nil, &kms.Error{Code: kms.CodeValidation, Violations: []kms.Violation{{Field: "plaintext", Description: "must be at most 4096 bytes"}}}
	}}
	_, err := keyholdv1.NewCryptographyServiceClient(open(t, c).app(t)).Encrypt(t.Context(), &keyholdv1.EncryptRequest{})
	for _, d := range status.Convert(err).Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			if v := bad.GetFieldViolations(); len(v) != 1 || v[0].GetField() != "plaintext" || v[0].GetDescription() != "must be at most 4096 bytes" {
				t.Errorf("violations are %v", v)
			}
			return
		}
	}
	t.Errorf("%v has no BadRequest", err)
}

// garbage is a codec that sends bytes that are no message.
type garbage struct{ bytes []byte }

func (g garbage) Marshal(any) ([]byte, error)     { return g.bytes, nil }
func (g garbage) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }
func (g garbage) Name() string                    { return "proto" }

var _ encoding.Codec = garbage{}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return &keyholdv1.EncryptResponse{}, nil
	}}
	conn := open(t, c).app(t)
	for _, tt := range []struct {
		name  string
		bytes []byte
		want  codes.Code
	}{
		{"as large as may be", must(proto.Marshal(&keyholdv1.EncryptRequest{Plaintext: make([]byte, 256<<10-4)})), codes.OK},
		{"one byte larger", must(proto.Marshal(&keyholdv1.EncryptRequest{Plaintext: make([]byte, 256<<10-3)})), codes.InvalidArgument},
		{"more than gRPC reads", must(proto.Marshal(&keyholdv1.EncryptRequest{Plaintext: make([]byte, 3<<20)})), codes.ResourceExhausted},
		{"garbage", []byte{0xff, 0xff, 0xff}, codes.InvalidArgument},
		{"invalid UTF-8", []byte{0x0a, 0x02, 0xff, 0xfe}, codes.InvalidArgument},
	} {
		err := conn.Invoke(t.Context(), keyholdv1.CryptographyService_Encrypt_FullMethodName, &keyholdv1.EncryptRequest{}, &keyholdv1.EncryptResponse{}, grpc.ForceCodec(garbage{tt.bytes}))
		if status.Code(err) != tt.want {
			t.Errorf("%s (%d bytes): %v, want %s", tt.name, len(tt.bytes), err, tt.want)
		}
		if tt.want == codes.InvalidArgument && infoOf(t, err).GetReason() != "ValidationException" {
			t.Errorf("%s: reason %s", tt.name, infoOf(t, err).GetReason())
		}
		if strings.HasPrefix(tt.name, "one byte") && !strings.Contains(err.Error(), "at most 262144 bytes; it has 262145") {
			t.Errorf("%s: %v does not say the limit", tt.name, err)
		}
	}
	// The core hears of them: it records them.
	c.mu.Lock()
	if n := slices.Index(c.calls, "malformed Encrypt"); n != 1 || len(c.calls) != 4 {
		t.Errorf("the core was called for %q, want one request and three that are malformed", c.calls)
	}
	c.mu.Unlock()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("y", 32<<10))
	if _, err := keyholdv1.NewCryptographyServiceClient(conn).Encrypt(ctx, &keyholdv1.EncryptRequest{}); err == nil {
		t.Error("32 KiB of metadata were accepted")
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// TestDeadlines: the client's deadline reaches the core, and a client without
// one gets the door's.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	left := make(chan time.Duration, 1)
	c := &core{do: func(ctx context.Context, _ *identity.Caller, _ string, _ proto.Message) (proto.Message, error) {
		deadline, ok := ctx.Deadline()
		if !ok {
			return nil, errors.New("no deadline")
		}
		left <- time.Until(deadline)
		return &keyholdv1.GenerateRandomResponse{}, nil
	}}
	client := keyholdv1.NewCryptographyServiceClient(open(t, c).app(t))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, tt := range []struct {
		ctx      context.Context
		from, to time.Duration
	}{{ctx, 0, 20 * time.Second}, {t.Context(), 20 * time.Second, time.Minute}} {
		if _, err := client.GenerateRandom(tt.ctx, &keyholdv1.GenerateRandomRequest{}); err != nil {
			t.Fatal(err)
		}
		if d := <-left; d <= tt.from || d > tt.to {
			t.Errorf("%s are left, want more than %s and at most %s", d, tt.from, tt.to)
		}
	}
}

func TestHealthFollowsReadiness(t *testing.T) {
	t.Parallel()
	c := &core{}
	d := open(t, c)
	client := healthpb.NewHealthClient(d.app(t))
	watch, err := client.Watch(t.Context(), &healthpb.HealthCheckRequest{Service: "keyhold.v1.CryptographyService"})
	if err != nil {
		t.Fatal(err)
	}
	down := errors.New("token gone")
	var none error
	for _, step := range []struct {
		set  *error
		want healthpb.HealthCheckResponse_ServingStatus
	}{{nil, healthpb.HealthCheckResponse_SERVING}, {&down, healthpb.HealthCheckResponse_NOT_SERVING}, {&none, healthpb.HealthCheckResponse_SERVING}} {
		if step.set != nil {
			c.ready.Store(step.set)
		}
		got, err := watch.Recv()
		if err != nil || got.GetStatus() != step.want {
			t.Fatalf("health is %v, %v, want %s", got, err, step.want)
		}
	}
}

func TestReflection(t *testing.T) {
	t.Parallel()
	stream, err := reflectionpb.NewServerReflectionClient(open(t, &core{}).app(t)).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range resp.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for _, sd := range kms.Services() {
		if !slices.Contains(names, string(sd.FullName())) {
			t.Errorf("%s is not listed in %v", sd.FullName(), names)
		}
	}
}

// TestDrain: requests under way finish, new ones are refused.
func TestDrain(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		close(entered)
		<-release
		return &keyholdv1.GenerateRandomResponse{Plaintext: []byte("late")}, nil
	}}
	d := open(t, c)
	client := keyholdv1.NewCryptographyServiceClient(d.app(t))
	type result struct {
		resp *keyholdv1.GenerateRandomResponse
		err  error
	}
	first := make(chan result, 1)
	go func() {
		resp, err := client.GenerateRandom(t.Context(), &keyholdv1.GenerateRandomRequest{})
		first <- result{resp, err}
	}()
	<-entered
	stopped := make(chan struct{})
	go func() {
		d.stop()
		close(stopped)
	}()
	// The listener closes first; then a fresh connection is refused.
	other := keyholdv1.NewCryptographyServiceClient(d.app(t))
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := healthpb.NewHealthClient(d.app(t)).Check(ctx, &healthpb.HealthCheckRequest{})
		cancel()
		if status.Code(err) == codes.Unavailable {
			break
		}
	}
	if _, err := other.GenerateRandom(t.Context(), &keyholdv1.GenerateRandomRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a new request while draining: %v", err)
	}
	close(release)
	if r := <-first; r.err != nil || string(r.resp.GetPlaintext()) != "late" {
		t.Errorf("the request under way ended with %v, %v", r.resp, r.err)
	}
	<-stopped
}

// TestDrainEndsWatches: who watches the health service does not hold up a
// server that stops. Without that, Shutdown would wait for ever here.
func TestDrainEndsWatches(t *testing.T) {
	t.Parallel()
	d := open(t, &core{})
	watch, err := healthpb.NewHealthClient(d.app(t)).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	d.stopWithin(t.Context())
	for err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ended with %v", err)
	}
}

// TestCutLeavesHangingHandlersBehind: a handler that does not obey its
// context does not keep the process from ending.
func TestCutLeavesHangingHandlersBehind(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		close(entered)
		<-release
		return &keyholdv1.GenerateRandomResponse{}, nil
	}}
	d := open(t, c)
	defer close(release)
	client := keyholdv1.NewCryptographyServiceClient(d.app(t))
	failed := make(chan error, 1)
	go func() {
		_, err := client.GenerateRandom(t.Context(), &keyholdv1.GenerateRandomRequest{})
		failed <- err
	}()
	<-entered
	now, cancel := context.WithCancel(t.Context())
	cancel()
	d.stopWithin(now)
	if err := <-failed; status.Code(err) != codes.Unavailable {
		t.Errorf("the request that was cut ended with %v", err)
	}
}

// TestCertificatesReload: a new certificate is served without a restart, a
// broken one leaves the old in use.
func TestCertificatesReload(t *testing.T) {
	t.Parallel()
	d := open(t, &core{})
	cert := d.ca.client(t, app)
	served := func() string {
		conn, err := tls.Dial("tcp", d.address, &tls.Config{RootCAs: d.ca.pool(), ServerName: "localhost", Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if got := served(); got != "first" {
		t.Fatalf("serves %q", got)
	}
	d.ca.writeServerFiles(t, d.dir, "second")
	if got := served(); got != "second" {
		t.Errorf("after the files changed it serves %q", got)
	}
	writeFile(t, d.files.Cert, "broken")
	if got := served(); got != "second" {
		t.Errorf("with a broken file it serves %q", got)
	}
}

func TestNewRefusesWeakTLS(t *testing.T) {
	t.Parallel()
	for _, conf := range []*tls.Config{
		nil,
		{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert},
		{MinVersion: tls.VersionTLS13, ClientAuth: tls.VerifyClientCertIfGiven},
	} {
		if _, err := grpcapi.New(grpcapi.Config{Core: &core{}, TLS: conf}); err == nil {
			t.Errorf("%+v was accepted", conf)
		}
	}
}
