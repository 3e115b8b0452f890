package grpcapi_test

import (
	"crypto/tls"
	"testing"
	"time"
)

// TestResumptionDoesNotOutliveTheAuthority: a client whose authority was taken
// out of client_ca must not come back with a session ticket of before.
func TestResumptionDoesNotOutliveTheAuthority(t *testing.T) {
	t.Parallel()
	d := open(t, &core{})
	cert := d.ca.client(t, app)
	conf := &tls.Config{
		RootCAs: d.ca.pool(), ServerName: "localhost", Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"},
		MinVersion: tls.VersionTLS13, ClientSessionCache: tls.NewLRUClientSessionCache(4), InsecureSkipVerify: true,
	}
	connect := func() (resumed bool, err error) {
		conn, err := tls.Dial("tcp", d.address, conf)
		if err != nil {
			return false, err
		}
		defer conn.Close()
		// The server's verdict and its tickets come with the first read: the
		// settings frame of HTTP/2.
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return false, err
		}
		if _, err := conn.Read(make([]byte, 9)); err != nil {
			return false, err
		}
		return conn.ConnectionState().DidResume, nil
	}
	for range 2 { // the second has a ticket, if the server gives any
		if _, err := connect(); err != nil {
			t.Fatal(err)
		}
	}
	newAuthority(t).writeServerFiles(t, d.dir, "second")
	if resumed, err := connect(); err == nil {
		t.Errorf("a client of the old authority was let in (resumed: %t)", resumed)
	}
}
