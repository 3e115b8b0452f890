package hsm

import "sync"

// handover takes a secret from the worker to the caller, or wipes it when the caller has gone, or the call failed. Every call whose answer is a
// secret uses one: the worker's closure would keep what nobody reads until the collector comes, and unwiped after that.
type handover struct {
	mu     sync.Mutex
	gone   bool
	secret []byte
}

func (x *handover) give(secret []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.secret) // of an attempt that failed
	x.secret = secret
	if x.gone {
		clear(x.secret)
	}
}

func (x *handover) take(err error) ([]byte, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.gone = true
	if err != nil {
		clear(x.secret)
		return nil, err
	}
	return x.secret, nil
}
