package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/keyhold/keyhold/server/adminapi"
	"github.com/keyhold/keyhold/server/awsapi"
	"github.com/keyhold/keyhold/server/door"
	"github.com/keyhold/keyhold/server/grpcapi"
	"github.com/keyhold/keyhold/server/identity/credentials"
	"github.com/keyhold/keyhold/server/sigv4"
)

// entrance is a listener and what serves it.
type entrance struct {
	name, listen string
	server       interface {
		Serve(l net.Listener) error
		Shutdown(ctx context.Context)
	}
	// at is where its address is noted.
	at *string
}

// entrances makes the doors and the admin listener, the latter last.
func (s *Server) entrances(a *Addresses) ([]entrance, error) {
	grpc, err := s.grpcDoor()
	if err != nil {
		return nil, err
	}
	all := []entrance{{"gRPC", s.cfg.GRPC.Listen, grpc, &a.GRPC}}
	if s.cfg.AWS.Listen != "" {
		aws, err := s.awsDoor()
		if err != nil {
			return nil, err
		}
		all = append(all, entrance{"the AWS API", s.cfg.AWS.Listen, aws, &a.AWS})
	}
	admin := adminapi.New(adminapi.Config{Ready: s.Core.Ready, Metrics: s.metrics, Logger: s.log})
	return append(all, entrance{"the admin listener", s.cfg.Admin.Listen, admin, &a.Admin}), nil
}

func (s *Server) grpcDoor() (*grpcapi.Server, error) {
	c := s.cfg.GRPC
	conf, err := door.NewTLS(door.TLSFiles{
		Cert: c.Cert, Key: c.Key, ClientCA: c.ClientCA, MinVersion: tls.VersionTLS13, Protocols: []string{"h2"},
	}, s.log)
	if err != nil {
		return nil, err
	}
	return grpcapi.New(grpcapi.Config{
		Core: s.Core, Principals: s.Principals, TLS: conf, MaxConnections: c.MaxConnections,
		DefaultRegion: s.cfg.Regions[0].Name, Logger: s.log, Refused: s.metrics.Refused,
	})
}

// awsDoor makes the door, with TLS where there is a certificate.
func (s *Server) awsDoor() (*awsapi.Server, error) {
	c := s.cfg.AWS
	var conf *tls.Config
	if c.Cert != "" {
		var err error
		// Clients of the AWS API are as old as they are.
		files := door.TLSFiles{Cert: c.Cert, Key: c.Key, MinVersion: tls.VersionTLS12, Protocols: []string{"h2", "http/1.1"}}
		if conf, err = door.NewTLS(files, s.log); err != nil {
			return nil, err
		}
	}
	keys := credentials.New(s.AccessKeys)
	var regions []string
	for _, r := range s.cfg.Regions {
		regions = append(regions, r.Name)
	}
	verifier, err := sigv4.New(sigv4.Config{Credentials: keys, Regions: regions, AllowQuery: true})
	if err != nil {
		return nil, err
	}
	keys.Forget(verifier)
	return awsapi.New(awsapi.Config{
		Core: s.Core, Verifier: verifier, Keys: keys, TLS: conf, MaxConnections: c.MaxConnections, Logger: s.log,
		Refused: s.metrics.Refused, Throttled: s.metrics.Throttled,
	})
}

// Run serves until ctx ends, then stops accepting, lets requests under way
// finish within the configured grace, and returns.
func (s *Server) Run(ctx context.Context) error {
	var addresses Addresses
	entrances, err := s.entrances(&addresses)
	if err != nil {
		return err
	}
	listeners, err := listen(ctx, entrances)
	if err != nil {
		return err
	}
	serving, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tuneGC()
	var wg sync.WaitGroup
	for i, e := range entrances {
		wg.Go(func() { cancel(e.server.Serve(listeners[i])) })
	}
	wg.Go(func() { s.Core.Run(serving) })
	wg.Go(func() { s.AccessKeys.Run(serving) })
	wg.Go(func() { s.findSealKey(serving) })
	s.log.InfoContext(ctx, "serving", "grpc", addresses.GRPC, "aws", addresses.AWS, "admin", addresses.Admin)
	if s.opts.Serving != nil {
		s.opts.Serving(addresses)
	}

	<-serving.Done()
	s.log.InfoContext(ctx, "stopping", "grace", s.cfg.ShutdownGrace)
	grace, stop := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ShutdownGrace)
	defer stop()
	// All doors at once; the admin listener shows what goes on to the last.
	var doors sync.WaitGroup
	for _, e := range entrances[:len(entrances)-1] {
		doors.Go(func() { e.server.Shutdown(grace) })
	}
	doors.Wait()
	entrances[len(entrances)-1].server.Shutdown(grace)
	wg.Wait()
	if ctx.Err() != nil {
		return nil // told to stop
	}
	return context.Cause(serving)
}

// listen opens all listeners, or none.
func listen(ctx context.Context, entrances []entrance) ([]net.Listener, error) {
	var lc net.ListenConfig
	var all []net.Listener
	for _, e := range entrances {
		l, err := lc.Listen(ctx, "tcp", e.listen)
		if err != nil {
			err = fmt.Errorf("listen for %s: %w", e.name, err)
			for _, open := range all {
				err = errors.Join(err, open.Close())
			}
			return nil, err
		}
		*e.at = l.Addr().String()
		all = append(all, l)
	}
	return all, nil
}
