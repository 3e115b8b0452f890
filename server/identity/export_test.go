package identity

import "context"

// FlushDue writes what Run would write now.
func (a *AccessKeys) FlushDue(ctx context.Context) { a.flush(ctx, false) }
