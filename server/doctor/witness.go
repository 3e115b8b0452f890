package doctor

import (
	"context"

	"github.com/keyhold/keyhold/hsm/witness"
)

// witness lets an independent library look at the token.
func (e *exam) witness(ctx context.Context, p *patient) {
	const name = "witness"
	if e.opts.Witness.Exe == "" {
		e.skip(name, p.name, "not wanted")
		return
	}
	if err := p.token.Ready(); err != nil {
		e.skip(name, p.name, "the token is not ready: "+cause(err))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, e.opts.Timeout)
	defer cancel()
	child := e.opts.Witness
	child.Module, child.PIN = p.cfg.Module, p.cfg.PIN
	report, err := witness.Run(ctx, p.token, child)
	if err != nil {
		e.fail(name, p.name, cause(err), "look at the token's own logs; --no-witness leaves the witness out")
		return
	}
	c := Check{Name: name, Subject: p.name, Status: OK}
	agreed := 0
	for _, w := range report.Checks {
		switch {
		case w.Err != "":
			c.Details = append(c.Details, "disagrees: "+w.Name+": "+w.Err)
		case w.Skipped != "":
			c.Details = append(c.Details, "skipped: "+w.Name+": "+w.Skipped)
		default:
			agreed++
			c.Evidence = append(c.Evidence, w.Name)
		}
	}
	c.Fact = "crypto11, in a process of its own, and Keyhold agree in all of " + count(agreed, "check")
	if !report.OK() {
		c.Status, c.Fact = Fail, "crypto11, an independent library, sees this token in another way than Keyhold"
		c.Remedy = "do not use this token before it is clear which of them is wrong; report it with the whole output of doctor"
	}
	e.add(c)
}
