package main

import (
	"net/url"
	"slices"
	"time"
)

func grace(a *Area) {
	set := func(t *T, h string, to time.Duration) {
		t.must(t.Call("PUT", "/containers/"+h+"/grace_time", nil, to.Nanoseconds(), nil))
	}
	gone := func(t *T, h string) bool { return !slices.Contains(t.list(url.Values{"garden.state": {"all"}}), h) }
	a.check("a container goes when its time is over", func(t *T) {
		h := t.create(nil)
		set(t, h, 500*time.Millisecond)
		t.until("it is gone", func() bool { return gone(t, h) })
	})
	a.check("a time given at creation counts as well", func(t *T) {
		h := t.create(m{"grace_time": (300 * time.Millisecond).Nanoseconds()})
		t.until("it is gone", func() bool { return gone(t, h) })
	})
	a.check("no time passes while a client is there", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh("read line; echo $line"))
		set(t, h, 50*time.Millisecond)
		time.Sleep(time.Second)
		t.want(!gone(t, h))
		t.must(p.Write("still here\n"))
		t.equal(t.end(p), Done{0, "still here\n", ""})
		t.until("it is gone", func() bool { return gone(t, h) })
	})
	a.check("each call begins the time anew", func(t *T) {
		// Long enough for a machine that stands still for a while.
		grace := 3 * time.Second
		h := t.create(m{"grace_time": grace.Nanoseconds()})
		for start := time.Now(); time.Since(start) < grace+time.Second; time.Sleep(50 * time.Millisecond) {
			t.get(h, "info")
		}
		t.until("it is gone", func() bool { return gone(t, h) })
	})
	a.check("no time at all ends it soon", func(t *T) {
		h := t.create(nil)
		set(t, h, 0)
		t.until("it is gone", func() bool { return gone(t, h) })
	})
	a.check("an unknown handle", func(t *T) {
		err := t.Call("PUT", "/containers/no-such-handle/grace_time", nil, 5, nil)
		t.want(err == nil || isType(err, "ContainerNotFoundError"), err)
	})
}
