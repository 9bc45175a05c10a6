package main

import (
	"strings"
	"time"
)

func stop(a *Area) {
	halt := func(t *T, h string, kill bool) {
		t.must(t.Call("PUT", "/containers/"+h+"/stop", nil, m{"kill": kill}, nil))
	}
	a.check("a trap ends as it wants", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh(trap))
		t.until("ready", func() bool { return p.Stdout.Has("ready") })
		halt(t, h, false)
		t.equal(t.end(p).Code, 42)
	})
	a.check("grandchildren are told too; who dies of it reports 143", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh(`sh -c 'trap "exit 42" TERM; echo ready; while true; do sleep 0.05; done' & child=$!
			trap 'wait $child; echo grandchild $?; trap - TERM; kill $$' TERM; echo set; wait $child; wait $child`))
		t.until("both are ready", func() bool { return p.Stdout.Has("ready") && p.Stdout.Has("set") })
		halt(t, h, false)
		done := t.end(p)
		t.want(done.Code == 143 && strings.HasSuffix(done.Out, "\ngrandchild 42\n"), done)
	})
	a.check("its state is stopped, and processes can still be run", func(t *T) {
		h := t.create(nil)
		halt(t, h, false)
		t.equal(t.get(h, "info")["State"], "stopped")
		t.equal(t.say(h, "echo still here"), "still here")
	})
	a.check("what does not listen is killed, ten seconds later", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh("trap '' TERM; echo ready; while true; do sleep 0.05; done"))
		t.until("ready", func() bool { return p.Stdout.Has("ready") })
		start := time.Now()
		halt(t, h, false)
		t.want(time.Since(start) >= 10*time.Second, time.Since(start))
		t.equal(t.end(p).Code, 137)
	})
	a.check("everything is killed at once where that is asked for", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh(trap))
		t.until("ready", func() bool { return p.Stdout.Has("ready") })
		halt(t, h, true)
		t.equal(t.end(p).Code, 137)
		t.equal(t.get(h, "info")["State"], "stopped")
	})
}
