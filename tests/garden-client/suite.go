package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// How many checks run at a time.
	atOnce = 12
	// What does not happen within this does not happen.
	patience = 15 * time.Second
	// A check that takes longer is stuck.
	stuck = 90 * time.Second
)

// Suite is all checks on one server.
type Suite struct {
	*Client
	dir, image, debug, only string
	// Whether the server's store has a driver of disk limits.
	diskLimits bool
	// For servers that checks start themselves: the program, a network namespace that is outside of theirs, and the
	// program that asks and answers.
	serve, outside, probe string
	checks                []*check
	// What is looked at when all checks are done: an error is a failure.
	last           []func() error
	names, servers atomic.Int64
}

type check struct {
	name   string
	body   func(*T)
	result chan string
}

// Area adds the checks of one subject.
type Area struct {
	*Suite
	name string
}

// check adds one.
func (a *Area) check(name string, body func(*T)) {
	a.checks = append(a.checks, &check{a.name + ": " + name, body, make(chan string, 1)})
}

// run does all checks and says how many passed.
func (s *Suite) run() bool {
	var chosen []*check
	for _, c := range s.checks {
		if strings.Contains(c.name, s.only) {
			chosen = append(chosen, c)
		}
	}
	slots := make(chan struct{}, atOnce)
	go func() {
		for _, c := range chosen {
			slots <- struct{}{}
			go func() {
				c.result <- s.one(c)
				<-slots
			}()
		}
	}()
	passed, failed := 0, 0
	for _, c := range chosen {
		if why := <-c.result; why == "" {
			passed++
			fmt.Println("ok", c.name)
		} else {
			failed++
			fmt.Printf("FAILED %s: %s\n", c.name, why)
		}
	}
	for _, each := range s.last {
		if err := each(); err != nil {
			failed++
			fmt.Println("FAILED the end:", err)
		}
	}
	fmt.Printf("%d checks passed, %d failed\n", passed, failed)
	return failed == 0 && passed > 0
}

// one runs a check; the reason if it fails.
func (s *Suite) one(c *check) (why string) {
	t := &T{Suite: s}
	done := make(chan string, 2)
	go func() {
		defer func() {
			switch e := recover().(type) {
			case nil:
				if t.late != nil {
					done <- t.late.Error()
				}
				done <- ""
			case failed:
				done <- string(e)
			default:
				done <- fmt.Sprintf("%v\n%s", e, debug.Stack())
			}
		}()
		defer t.clean()
		c.body(t)
	}()
	select {
	case why = <-done:
	case <-time.After(stuck):
		why = "stuck"
		// It does not come to this itself, and without its containers it may end.
		t.clean()
	}
	return why
}

type failed string

// T is one check while it runs.
type T struct {
	*Suite
	undo []func()
	// What went wrong when it was undone.
	late error
}

func (t *T) clean() {
	for n := len(t.undo) - 1; n >= 0; n-- {
		t.undo[n]()
	}
}

func (t *T) fail(format string, args ...any) { panic(failed(fmt.Sprintf(format, args...))) }

func (t *T) must(err error) {
	if err != nil {
		t.fail("%v", err)
	}
}

// want that something holds; otherwise these were seen.
func (t *T) want(holds bool, seen ...any) {
	if !holds {
		text := ""
		for _, each := range seen {
			switch each := each.(type) {
			case string:
				text += fmt.Sprintf(" %q", each)
			case *Output:
				text += fmt.Sprintf(" %q", each.String())
			default:
				text += fmt.Sprintf(" %+v", each)
			}
		}
		t.fail("got%s (%s)", text, caller())
	}
}

// caller names the line of the check that went wrong.
func caller() string {
	for _, line := range strings.Split(string(debug.Stack()), "\n") {
		line = strings.TrimSpace(line)
		if strings.Contains(line, ".go:") && !strings.Contains(line, "suite.go:") &&
			!strings.Contains(line, "/runtime/") {
			return filepath.Base(strings.Fields(line)[0])
		}
	}
	return "?"
}

func (t *T) equal(got, want any) {
	if !reflect.DeepEqual(got, want) {
		t.fail("got %#v, want %#v (%s)", got, want, caller())
	}
}

// until waits for something to become true.
func (t *T) until(what string, holds func() bool) {
	for start := time.Now(); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			t.fail("never: %s (%s)", what, caller())
		}
	}
}

// isType says whether an error is Garden's of this type.
func isType(err error, kind string) bool {
	var e *Error
	return errors.As(err, &e) && e.Type == kind
}

// says whether an error's text contains this.
func says(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

// unique makes a name that nobody else has.
func (t *T) unique(prefix string) string {
	return fmt.Sprintf("%s-%d-%d", prefix, os.Getpid(), t.names.Add(1))
}

// folder makes a directory on the host that any user may read.
func (t *T) folder() string {
	dir := filepath.Join(t.dir, t.unique("folder"))
	t.must(os.Mkdir(dir, 0o755))
	return dir
}

// create makes a container; it goes with the check.
func (t *T) create(spec m) string {
	handle, err := t.tryCreate(spec)
	t.must(err)
	return handle
}

func (t *T) tryCreate(spec m) (string, error) {
	full := m{"handle": t.unique("go"), "image": m{"uri": t.image}, "limits": m{"bandwidth_limits": m{},
		"cpu_limits": m{}, "disk_limits": m{}, "memory_limits": m{}, "pid_limits": m{}}}
	for k, v := range spec {
		full[k] = v
	}
	var reply struct{ Handle string }
	err := t.Call("POST", "/containers", nil, full, &reply)
	if err == nil {
		t.undo = append(t.undo, func() { t.Call("DELETE", "/containers/"+reply.Handle, nil, nil, nil) })
	}
	return reply.Handle, err
}

// get asks for JSON about a container.
func (t *T) get(handle, what string) m {
	var reply m
	t.must(t.Call("GET", "/containers/"+handle+"/"+what, nil, nil, &reply))
	return reply
}

func (t *T) list(filter url.Values) []string {
	var reply struct{ Handles []string }
	t.must(t.Call("GET", "/containers", filter, nil, &reply))
	if reply.Handles == nil {
		t.fail("no list of handles")
	}
	return reply.Handles
}

// start runs a process with both outputs.
func (t *T) start(handle string, spec m) *Process {
	p, err := t.Run(handle, spec)
	t.must(err)
	return p
}

// Done is how a process ended.
type Done struct {
	Code     int
	Out, Err string
}

func (t *T) end(p *Process) Done {
	code, err := p.Wait()
	t.must(err)
	return Done{code, p.Stdout.String(), p.Stderr.String()}
}

// sh is a process that runs a script; pairs of fields may follow.
func sh(script string, more ...any) m {
	spec := m{"path": "/bin/sh", "args": []string{"-c", script}}
	for n := 0; n < len(more); n += 2 {
		spec[more[n].(string)] = more[n+1]
	}
	return spec
}

// do runs a script to its end.
func (t *T) do(handle, script string, more ...any) Done {
	return t.end(t.start(handle, sh(script, more...)))
}

// say is what a script writes, without its last line's end; it must succeed.
func (t *T) say(handle, script string, more ...any) string {
	done := t.do(handle, script, more...)
	if done.Code != 0 {
		t.fail("%s: %+v (%s)", script, done, caller())
	}
	return strings.TrimRight(done.Out, "\n")
}

// v2 says whether the container's host has cgroup v2 alone.
func (t *T) v2(handle string) bool {
	return !strings.Contains(t.say(handle, "cat /proc/self/cgroup"), ":memory:")
}

// fields splits a text into lines, and those into words.
func fields(text string) [][]string {
	var all [][]string
	for line := range strings.Lines(text) {
		all = append(all, strings.Fields(line))
	}
	return all
}

// spill is bytes that a tar or an input is made of.
func spill(size int) []byte { return bytes.Repeat([]byte("0123456789abcdef"), (size+15)/16)[:size] }

// together runs a function n times at once.
func together(n int, body func(n int)) {
	var all sync.WaitGroup
	for n := range n {
		all.Add(1)
		go func() {
			defer all.Done()
			body(n)
		}()
	}
	all.Wait()
}
