package main

import (
	"fmt"
	"strings"
)

func tty(a *Area) {
	a.check("much output of a terminal is whole, 20 times", func(t *T) {
		h := t.create(nil)
		var want strings.Builder
		for n := range 10000 {
			fmt.Fprintf(&want, "%d\r\n", n+1)
		}
		for range 20 {
			done := t.end(t.start(h, m{"path": "seq", "args": []string{"10000"}, "tty": m{}}))
			t.want(done.Code == 0 && done.Out == want.String(), done.Code, len(done.Out), want.Len())
		}
	})
	a.check("a terminal has 24 rows of 80 columns", func(t *T) {
		t.equal(t.do(t.create(nil), "stty size", "tty", m{}), Done{0, "24 80\r\n", ""})
	})
	a.check("a terminal has the size that was asked for", func(t *T) {
		got := t.do(t.create(nil), "stty size", "tty", m{"window_size": m{"columns": 123, "rows": 456}})
		t.equal(got, Done{0, "456 123\r\n", ""})
	})
	a.check("a terminal ends lines with return and line feed", func(t *T) {
		t.equal(t.do(t.create(nil), "echo hello", "tty", m{}), Done{0, "hello\r\n", ""})
	})
	a.check("a new size is told with a signal", func(t *T) {
		p := t.start(t.create(nil), sh("trap 'stty size' WINCH; echo ready; while true; do sleep 0.05; done", "tty", m{}))
		t.until("ready", func() bool { return p.Stdout.Has("ready") })
		t.must(p.Resize(123, 456))
		t.until("the new size", func() bool { return p.Stdout.Has("456 123") })
		t.must(p.Signal(1))
		t.equal(t.end(p).Code, 137)
	})
	a.check("a new size counts also after the end of input", func(t *T) {
		p := t.start(t.create(nil), sh("trap 'stty size; exit 7' WINCH; echo ready; while true; do sleep 0.05; done", "tty", m{}))
		t.until("ready", func() bool { return p.Stdout.Has("ready") })
		t.must(p.CloseStdin())
		t.must(p.Resize(123, 456))
		t.equal(t.end(p), Done{7, "ready\r\n456 123\r\n", ""})
	})
	a.check("both outputs of a terminal are one, for whoever attaches", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh("stty -echo; echo ready; read line; echo out; echo err >&2; exit 4", "tty", m{}))
		t.until("ready", func() bool { return p.Stdout.Has("ready") })
		other, err := t.Attach(h, p.ID)
		t.must(err)
		t.must(other.Write("go\n"))
		t.equal(t.end(p), Done{4, "ready\r\nout\r\nerr\r\n", ""})
		t.equal(t.end(other), Done{4, "out\r\nerr\r\n", ""})
	})
	a.check("a pea has a terminal", func(t *T) {
		h := t.create(nil)
		got := t.do(h, "stty size; tty", "tty", m{"window_size": m{"columns": 100, "rows": 30}}, "image", m{"uri": t.image})
		t.want(got.Code == 0 && strings.HasPrefix(got.Out, "30 100\r\n/dev/"), got)
	})
}
