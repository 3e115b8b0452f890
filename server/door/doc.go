// Package door is what the doors that clients come in through have in common:
// listeners with a bound on connections, certificates that are read again, and
// logs that cannot be flooded. It knows nothing of protocols.
package door
