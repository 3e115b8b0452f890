package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// fake is as much of a server as the tool's own tests need: it answers, and
// writes each request into a file for the tests to look at. What the server
// really does is tested end to end, with the real one.
type fake struct {
	keyholdv1.UnimplementedCryptographyServiceServer
	keyholdv1.UnimplementedKeyManagementServiceServer

	requests string        // file: one line of JSON for each request
	blocked  chan struct{} // told when a request for key "slow" has come

	// onRequest, if any, is told the number of each request to the data plane,
	// from 1, and may refuse it.
	onRequest    atomic.Pointer[func(n int64) error]
	requestCount atomic.Int64

	mu      sync.Mutex
	keys    []*keyholdv1.KeyMetadata
	aliases []*keyholdv1.AliasListEntry
	private *ecdsa.PrivateKey
}

// fakeServer is where the fake listens.
type fakeServer struct {
	*fake
	addr   string
	health *health.Server
	stop   func()
}

// startFake serves a fake on loopback.
func startFake(p *pki, certFile, keyFile, requests string) (*fakeServer, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(p.ca)
	lis, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	f := &fake{requests: requests, blocked: make(chan struct{}, 1), private: private}
	s := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
			ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		})),
		grpc.UnaryInterceptor(f.record),
	)
	keyholdv1.RegisterCryptographyServiceServer(s, f)
	keyholdv1.RegisterKeyManagementServiceServer(s, f)
	keyholdv1.RegisterAccessKeyServiceServer(s, &fakeAccessKeys{fake: f})
	h := health.NewServer()
	grpc_health_v1.RegisterHealthServer(s, h)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(lis)
	}()
	return &fakeServer{fake: f, addr: lis.Addr().String(), health: h, stop: func() {
		s.Stop()
		<-done
	}}, nil
}

// newFake serves a fake for one test, and returns the environment that leads
// to it.
func newFake(t *testing.T) (*fakeServer, map[string]string) {
	t.Helper()
	p := newPKI(t)
	serverCert, serverKey := p.issue(t, "server", "keyhold.test")
	cert, key := p.issue(t, "client", "client.test")
	s, err := startFake(p, serverCert, serverKey, p.dir+"/requests")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s, map[string]string{
		"KEYHOLD_ADDR": s.addr, "KEYHOLD_CA": p.caFile, "KEYHOLD_CERT": cert, "KEYHOLD_KEY": key,
		"HOME": t.TempDir(),
	}
}

// record writes a line for each request before it is served.
func (f *fake) record(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	m, ok := req.(proto.Message)
	if !ok {
		return nil, status.Error(codes.Internal, "not a message")
	}
	line := fmt.Sprintf("%s %s region=%s\n", info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:],
		awsjson.NewEncoder(awsjson.Options{}).AppendMessage(nil, m), strings.Join(md.Get(client.RegionHeader), ","))
	out, err := os.OpenFile(f.requests, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = out.WriteString(line)
	if err = cmp.Or(err, out.Close()); err != nil {
		return nil, err
	}
	if on := f.onRequest.Load(); on != nil && strings.Contains(info.FullMethod, "CryptographyService") {
		if err := (*on)(f.requestCount.Add(1)); err != nil {
			return nil, err
		}
	}
	return next(ctx, req)
}

// exception is a status as the server makes them. The details' types are found
// by name: this package does not depend on them.
func exception(code codes.Code, name, message string, violations ...string) error {
	info := newDetail("google.rpc.ErrorInfo")
	set(info, "reason", protoreflect.ValueOfString(name))
	set(info, "domain", protoreflect.ValueOfString(client.ErrorDomain))
	info.Mutable(field(info, "metadata")).Map().Set(
		protoreflect.ValueOfString("request_id").MapKey(), protoreflect.ValueOfString("req-1"))
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(info.Interface())}
	if len(violations) > 0 {
		bad := newDetail("google.rpc.BadRequest")
		for _, v := range violations {
			path, text, _ := strings.Cut(v, ": ")
			item := bad.Mutable(field(bad, "field_violations")).List().AppendMutable().Message()
			set(item, "field", protoreflect.ValueOfString(path))
			set(item, "description", protoreflect.ValueOfString(text))
		}
		details = append(details, protoadapt.MessageV1Of(bad.Interface()))
	}
	st, err := status.New(code, cmp.Or(message, name)).WithDetails(details...)
	if err != nil {
		return err
	}
	return st.Err()
}

func newDetail(name protoreflect.FullName) protoreflect.Message {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(name)
	if err != nil {
		panic(err)
	}
	return mt.New()
}

func field(m protoreflect.Message, name protoreflect.Name) protoreflect.FieldDescriptor {
	return m.Descriptor().Fields().ByName(name)
}

func set(m protoreflect.Message, name protoreflect.Name, v protoreflect.Value) {
	m.Set(field(m, name), v)
}

// find looks a key up by id, ARN or alias name. The name "slow" never answers.
func (f *fake) find(ctx context.Context, id string) (*keyholdv1.KeyMetadata, error) {
	if id == "slow" {
		f.blocked <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, alias := range f.aliases {
		if alias.GetAliasName() == id {
			id = alias.GetTargetKeyId()
		}
	}
	for _, k := range f.keys {
		if k.GetKeyId() == id || k.GetArn() == id {
			return k, nil
		}
	}
	return nil, exception(codes.NotFound, "NotFoundException", "Key '"+id+"' does not exist")
}

// findID is find for operations that take no alias.
func (f *fake) findID(ctx context.Context, id string) (*keyholdv1.KeyMetadata, error) {
	if strings.HasPrefix(id, "alias/") {
		return nil, exception(codes.NotFound, "NotFoundException", "Invalid keyId '"+id+"'")
	}
	return f.find(ctx, id)
}

func (f *fake) CreateKey(_ context.Context, req *keyholdv1.CreateKeyRequest) (*keyholdv1.CreateKeyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := fmt.Sprintf("00000000-0000-4000-8000-%012d", len(f.keys)+1)
	meta := &keyholdv1.KeyMetadata{
		AwsAccountId: "000000000000",
		KeyId:        id,
		Arn:          "arn:aws:kms:us-east-1:000000000000:key/" + id,
		CreationDate: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)),
		Enabled:      proto.Bool(true),
		Description:  proto.String(req.GetDescription()),
		KeyUsage:     req.GetKeyUsage(),
		KeyState:     keyholdv1.KeyState_KEY_STATE_ENABLED,
		KeySpec:      req.GetKeySpec(),
		KeyCustody:   req.GetKeyCustody(),
	}
	switch req.GetKeyUsage() {
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC:
		meta.MacAlgorithms = []keyholdv1.MacAlgorithmSpec{keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256}
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY:
		meta.SigningAlgorithms = []keyholdv1.SigningAlgorithmSpec{keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256}
		if req.GetKeySpec() == keyholdv1.KeySpec_KEY_SPEC_RSA_2048 {
			meta.SigningAlgorithms = []keyholdv1.SigningAlgorithmSpec{
				keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_256,
				keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_512,
			}
		}
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_UNSPECIFIED:
		return nil, exception(codes.InvalidArgument, "ValidationException", "no usage", "key_usage: must be given")
	}
	f.keys = append(f.keys, meta)
	return &keyholdv1.CreateKeyResponse{KeyMetadata: meta}, nil
}

func (f *fake) DescribeKey(ctx context.Context, req *keyholdv1.DescribeKeyRequest) (*keyholdv1.DescribeKeyResponse, error) {
	meta, err := f.find(ctx, req.GetKeyId())
	return &keyholdv1.DescribeKeyResponse{KeyMetadata: meta}, err
}

// ListKeys gives pages of two.
func (f *fake) ListKeys(_ context.Context, req *keyholdv1.ListKeysRequest) (*keyholdv1.ListKeysResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := &keyholdv1.ListKeysResponse{Truncated: proto.Bool(false)}
	for _, k := range f.keys {
		if k.GetKeyId() <= req.GetMarker() {
			continue
		}
		if len(resp.GetKeys()) == 2 {
			resp.Truncated, resp.NextMarker = proto.Bool(true), resp.GetKeys()[1].GetKeyId()
			break
		}
		resp.Keys = append(resp.Keys, &keyholdv1.KeyListEntry{KeyId: k.GetKeyId(), KeyArn: k.GetArn()})
	}
	return resp, nil
}

func (f *fake) EnableKey(ctx context.Context, req *keyholdv1.EnableKeyRequest) (*keyholdv1.EnableKeyResponse, error) {
	_, err := f.findID(ctx, req.GetKeyId())
	return &keyholdv1.EnableKeyResponse{}, err
}

func (f *fake) DisableKey(ctx context.Context, req *keyholdv1.DisableKeyRequest) (*keyholdv1.DisableKeyResponse, error) {
	meta, err := f.findID(ctx, req.GetKeyId())
	if err == nil {
		meta.KeyState = keyholdv1.KeyState_KEY_STATE_DISABLED
	}
	return &keyholdv1.DisableKeyResponse{}, err
}

func (f *fake) ScheduleKeyDeletion(ctx context.Context, req *keyholdv1.ScheduleKeyDeletionRequest) (*keyholdv1.ScheduleKeyDeletionResponse, error) {
	meta, err := f.findID(ctx, req.GetKeyId())
	if err != nil {
		return nil, err
	}
	if d := req.GetPendingWindowInDays(); req.PendingWindowInDays != nil && (d < 7 || d > 30) {
		return nil, exception(codes.InvalidArgument, "ValidationException", "1 validation error",
			"pending_window_in_days: must be from 7 to 30", "evil\x1b[31m: \u202etxt")
	}
	return &keyholdv1.ScheduleKeyDeletionResponse{
		KeyId:               meta.GetArn(),
		DeletionDate:        timestamppb.New(time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)),
		KeyState:            keyholdv1.KeyState_KEY_STATE_PENDING_DELETION,
		PendingWindowInDays: proto.Int32(cmp.Or(req.GetPendingWindowInDays(), 30)),
	}, nil
}

func (f *fake) CancelKeyDeletion(ctx context.Context, req *keyholdv1.CancelKeyDeletionRequest) (*keyholdv1.CancelKeyDeletionResponse, error) {
	meta, err := f.findID(ctx, req.GetKeyId())
	return &keyholdv1.CancelKeyDeletionResponse{KeyId: meta.GetArn()}, err
}

func (f *fake) UpdateKeyDescription(ctx context.Context, req *keyholdv1.UpdateKeyDescriptionRequest) (*keyholdv1.UpdateKeyDescriptionResponse, error) {
	meta, err := f.findID(ctx, req.GetKeyId())
	if err == nil {
		meta.Description = proto.String(req.GetDescription())
	}
	return &keyholdv1.UpdateKeyDescriptionResponse{}, err
}

// CreateAlias finds that alias/late was taken a moment ago.
func (f *fake) CreateAlias(ctx context.Context, req *keyholdv1.CreateAliasRequest) (*keyholdv1.CreateAliasResponse, error) {
	meta, err := f.findID(ctx, req.GetTargetKeyId())
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, alias := range f.aliases {
		if alias.GetAliasName() == req.GetAliasName() || req.GetAliasName() == "alias/late" {
			return nil, exception(codes.AlreadyExists, "AlreadyExistsException", "An alias with the name "+req.GetAliasName()+" already exists")
		}
	}
	now := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	f.aliases = append(f.aliases, &keyholdv1.AliasListEntry{
		AliasName: req.GetAliasName(), TargetKeyId: meta.GetKeyId(), CreationDate: now, LastUpdatedDate: now,
	})
	slices.SortFunc(f.aliases, func(a, b *keyholdv1.AliasListEntry) int { return strings.Compare(a.GetAliasName(), b.GetAliasName()) })
	return &keyholdv1.CreateAliasResponse{}, nil
}

func (f *fake) UpdateAlias(ctx context.Context, req *keyholdv1.UpdateAliasRequest) (*keyholdv1.UpdateAliasResponse, error) {
	meta, err := f.findID(ctx, req.GetTargetKeyId())
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, alias := range f.aliases {
		if alias.GetAliasName() == req.GetAliasName() {
			alias.TargetKeyId = meta.GetKeyId()
			return &keyholdv1.UpdateAliasResponse{}, nil
		}
	}
	return nil, exception(codes.NotFound, "NotFoundException", "Alias "+req.GetAliasName()+" is not found")
}

func (f *fake) DeleteAlias(_ context.Context, req *keyholdv1.DeleteAliasRequest) (*keyholdv1.DeleteAliasResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.aliases = slices.DeleteFunc(f.aliases, func(a *keyholdv1.AliasListEntry) bool { return a.GetAliasName() == req.GetAliasName() })
	return &keyholdv1.DeleteAliasResponse{}, nil
}

// ListAliases gives pages of one.
func (f *fake) ListAliases(_ context.Context, req *keyholdv1.ListAliasesRequest) (*keyholdv1.ListAliasesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, alias := range f.aliases {
		if alias.GetAliasName() > req.GetMarker() && (req.KeyId == nil || req.GetKeyId() == alias.GetTargetKeyId()) {
			more := i < len(f.aliases)-1 && req.KeyId == nil
			resp := &keyholdv1.ListAliasesResponse{Aliases: []*keyholdv1.AliasListEntry{alias}, Truncated: proto.Bool(more)}
			if more {
				resp.NextMarker = alias.GetAliasName()
			}
			return resp, nil
		}
	}
	return &keyholdv1.ListAliasesResponse{Truncated: proto.Bool(false)}, nil
}
