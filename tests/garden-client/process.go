package main

import (
	"regexp"
	"strings"
)

// trap ends with 42 when it is told to terminate. It says "ready" when it listens.
const trap = "trap 'exit 42' TERM; echo ready; while true; do sleep 0.05; done"

func process(a *Area) {
	a.check("attaching to an unknown process", func(t *T) {
		_, err := t.Attach(t.create(nil), "no-such-process")
		t.want(isType(err, "ProcessNotFoundError") && err.(*Error).ProcessID == "no-such-process", err)
	})
	a.check("root is root, alice is alice", func(t *T) {
		h := t.create(nil)
		t.equal(t.say(h, "whoami", "user", "root"), "root")
		t.equal(t.say(h, "whoami", "user", "alice"), "alice")
	})
	a.check("outputs come apart, with the exit status and the environment", func(t *T) {
		done := t.do(t.create(nil), "echo $FIRST; echo $SECOND >&2; exit 42", "user", "alice",
			"env", []string{"FIRST=hello", "SECOND=goodbye"})
		t.equal(done, Done{42, "hello\n", "goodbye\n"})
	})
	a.check("standard input through /dev/stdin", func(t *T) {
		p := t.start(t.create(nil), sh("cat </dev/stdin", "user", "alice"))
		t.must(p.Write("hello\n"))
		t.until("the echo", func() bool { return p.Stdout.Has("hello\n") })
		t.must(p.CloseStdin())
		t.equal(t.end(p), Done{0, "hello\n", ""})
	})
	for _, path := range []string{"/dev/stdout", "/dev/stderr"} {
		a.check("any user may open "+path, func(t *T) {
			done := t.do(t.create(nil), "echo hello >"+path, "user", "alice")
			want := Done{0, "hello\n", ""}
			if strings.Contains(path, "err") {
				want = Done{0, "", "hello\n"}
			}
			t.equal(done, want)
		})
	}
	a.check("six attach, each gets the exit status", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh("read line; exit 12"))
		others, errs := make([]*Process, 6), make([]error, 6)
		together(6, func(n int) { others[n], errs[n] = t.Attach(h, p.ID) })
		for _, err := range errs {
			t.must(err)
		}
		t.must(p.Write("end\n"))
		codes := make([]int, 6)
		together(6, func(n int) { codes[n], errs[n] = others[n].Wait() })
		for n := range others {
			t.must(errs[n])
			t.equal(codes[n], 12)
		}
	})
	a.check("the exit status is told again and again", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh("exit 12"))
		for range 3 {
			t.equal(t.end(p), Done{12, "", ""})
		}
		for range 2 {
			other, err := t.Attach(h, p.ID)
			t.must(err)
			t.equal(t.end(other), Done{12, "", ""})
		}
	})
	a.check("whoever attaches later gets what comes from then on", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh("while read l; do echo out-$l; echo err-$l >&2; done; exit 5"))
		t.must(p.Write("one\n"))
		t.until("the first line", func() bool { return p.Stderr.Has("err-one\n") && p.Stdout.Has("out-one\n") })
		other, err := t.Attach(h, p.ID)
		t.must(err)
		t.must(p.Write("two\n"))
		t.until("the second line", func() bool { return p.Stdout.Has("out-two\n") })
		t.must(other.Write("three\n"))
		t.until("the third line", func() bool { return p.Stdout.Has("out-three\n") })
		// Input ends when the last of them has ended it.
		t.must(p.CloseStdin())
		t.must(other.Write("four\n"))
		t.until("the fourth line", func() bool { return p.Stdout.Has("out-four\n") })
		t.must(other.CloseStdin())
		t.equal(t.end(p), Done{5, "out-one\nout-two\nout-three\nout-four\n", "err-one\nerr-two\nerr-three\nerr-four\n"})
		t.equal(t.end(other), Done{5, "out-two\nout-three\nout-four\n", "err-two\nerr-three\nerr-four\n"})
	})
	for _, user := range []string{"alice", "root"} {
		a.check("a trap of TERM ends as it wants, as "+user, func(t *T) {
			p := t.start(t.create(nil), sh(trap, "user", user))
			t.until("ready", func() bool { return p.Stdout.Has("ready") })
			t.must(p.Signal(0))
			t.equal(t.end(p).Code, 42)
		})
	}
	for n, name := range []string{"TERM", "KILL"} {
		a.check("without /bin/kill, "+name, func(t *T) {
			h := t.create(nil)
			t.say(h, "rm /bin/kill")
			p := t.start(h, sh("echo here; exec sleep 12345"))
			t.until("here", func() bool { return p.Stdout.Has("here") })
			t.must(p.Signal(n))
			t.equal(t.end(p).Code, []int{143, 137}[n])
			t.until("it is gone", func() bool { return t.say(h, "ps -o args | grep -c [1]2345; true") == "0" })
		})
	}
	a.check("after KILL nothing more is written", func(t *T) {
		p, err := t.Control(t.create(nil), sh("while true; do echo tick; sleep 0.02; done"))
		t.must(err)
		t.must(p.Read("stdout"))
		t.until("ticks", func() bool { return p.Stdout.Has("tick\ntick\n") })
		t.must(p.Signal(1))
		// Its output ends before its status comes: nothing can follow.
		t.equal(t.end(p).Code, 137)
	})
	a.check("20 are killed as soon as they run", func(t *T) {
		h := t.create(nil)
		for range 20 {
			p := t.start(h, sh("sleep 12345"))
			t.must(p.Signal(1))
			t.equal(t.end(p).Code, 137)
		}
	})
	a.check("exit status follows all output, 20 times", func(t *T) {
		h := t.create(nil)
		for range 20 {
			t.equal(t.end(t.start(h, m{"path": "echo", "args": []string{"hi stdout"}})), Done{0, "hi stdout\n", ""})
		}
	})
	a.check("input is live", func(t *T) {
		p := t.start(t.create(nil), m{"path": "cat"})
		for _, line := range []string{"one\n", "two é\n", "three <&> \u2028\n"} {
			t.must(p.Write(line))
			t.until("the echo", func() bool { return p.Stdout.Has(line) })
		}
		t.must(p.CloseStdin())
		t.equal(t.end(p).Code, 0)
	})
	a.check("input that nobody reads holds up no exit status, 10 times", func(t *T) {
		h := t.create(nil)
		for range 10 {
			p := t.start(h, m{"path": "true"})
			for range 1024 {
				// Where the connection has been closed already there is nothing to write to.
				if p.Write("x") != nil {
					break
				}
			}
			t.equal(t.end(p).Code, 0)
		}
	})
	a.check("a working directory that is there", func(t *T) {
		h := t.create(nil)
		t.say(h, "mkdir /there && chmod 711 /there")
		t.equal(t.say(h, "pwd", "dir", "/there", "user", "alice"), "/there")
	})
	a.check("TERM right after run is not lost", func(t *T) {
		h := t.create(nil)
		for range 5 {
			p := t.start(h, sh("trap 'exit 42' TERM; while true; do sleep 0.05; done"))
			t.must(p.Signal(0))
			code := t.end(p).Code
			t.want(code == 42 || code == 143, code)
		}
	})
	a.check("bind mounts without an image are refused", func(t *T) {
		_, err := t.Run(t.create(nil), sh("true", "bind_mounts", []m{{"src_path": t.dir, "dst_path": "/mnt"}}))
		t.want(says(err, "Running a process with bind mounts and no image provided is not allowed"), err)
	})
	a.check("a process has the name that was asked for", func(t *T) {
		p := t.start(t.create(nil), sh("true", "id", "some-id"))
		t.equal(p.ID, "some-id")
		t.end(p)
	})
	a.check("a name is taken while its process runs", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh("read line", "id", "same"))
		_, err := t.Run(h, sh("true", "id", "same"))
		t.want(err != nil && regexp.MustCompile("already (in use|exists)").MatchString(err.Error()), err)
		t.must(p.CloseStdin())
		t.end(p)
	})
	a.check("the environment keeps its order", func(t *T) {
		got := t.say(t.create(nil), "exec env", "env", []string{"TEST=hello", "FRUIT=banana"})
		t.want(regexp.MustCompile(`(?s)TEST=hello\n.*FRUIT=banana`).MatchString(got), got)
	})
	a.check("the container's environment comes first, the process's wins", func(t *T) {
		h := t.create(m{"env": []string{"CONTAINER_NAME=container-name", "BOTH=container"}})
		got := t.end(t.start(h, m{"path": "env", "env": []string{"TEST=hello", "BOTH=process"}})).Out
		t.want(regexp.MustCompile(`(?s)CONTAINER_NAME=container-name\n.*TEST=hello\n.*BOTH=process`).MatchString(got) &&
			!strings.Contains(got, "BOTH=container"), got)
	})
	a.check("a trap that kills its child ends at once", func(t *T) {
		p := t.start(t.create(nil), sh(`cleanup() { kill $child; wait $child; exit 42; }
			trap cleanup TERM; sleep 12345 & child=$!
			# Before its exec the child is a copy of the shell, and may lose a signal with the shell's traps.
			until grep -q sleep /proc/$child/comm; do true; done; echo ready; wait`))
		t.until("ready", func() bool { return p.Stdout.Has("ready") })
		t.must(p.Signal(0))
		t.equal(t.end(p).Code, 42)
	})
	a.check("a working directory is made, for its user", func(t *T) {
		h := t.create(nil)
		for _, dir := range []string{"/home/alice/made/below", "/root/made"} {
			if strings.HasPrefix(dir, "/root") {
				t.say(h, "chmod 555 /root")
			}
			got := t.say(h, "pwd; touch mine; stat -c %U:%G . mine", "dir", dir, "user", "alice")
			t.equal(got, dir+"\nalice:alice\nalice:alice")
		}
	})
	a.check("no writing where it is forbidden", func(t *T) {
		h := t.create(nil)
		t.say(h, "mkdir -m 555 /forbidden")
		done := t.do(h, "touch mine", "dir", "/forbidden", "user", "alice")
		t.want(done.Code == 1 && strings.Contains(done.Err, "Permission denied"), done)
	})
	a.check("without a directory it is the user's home", func(t *T) {
		h := t.create(nil)
		t.equal(t.say(h, "pwd", "user", "alice"), "/home/alice")
		t.equal(t.say(h, "pwd"), "/root")
	})
	a.check("a working directory on a mount inside is where it is", func(t *T) {
		h := t.create(nil)
		t.equal(t.say(h, "pwd", "dir", "/dev/shm", "user", "alice"), "/dev/shm")
		t.equal(t.say(h, "pwd; stat -c %U .", "dir", "/dev/shm/made", "user", "alice"), "/dev/shm/made\nalice")
	})
	a.check("a working directory cannot lead out of the container", func(t *T) {
		h := t.create(nil)
		host := t.folder()
		t.say(h, "ln -s ../../../../../.. /up; ln -s "+host+" /away")
		for _, dir := range []string{"/up" + host + "/a", "/away/b"} {
			t.want(strings.HasPrefix(t.say(h, "pwd -P", "dir", dir), host))
		}
		names, err := readNames(host)
		t.must(err)
		t.equal(len(names), 0)
	})
	a.check("PATH is added where none is given", func(t *T) {
		h := t.create(nil)
		const root = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
		t.equal(t.say(h, "echo $PATH"), root)
		t.equal(t.say(h, "echo $PATH", "user", "alice"), "/usr/local/bin:/usr/bin:/bin")
		t.equal(t.say(h, "echo $PATH", "env", []string{"APATH=/x"}), root)
		t.equal(t.say(h, "echo $PATH", "env", []string{"PATH=/bin"}), "/bin")
	})
	a.check("USER: process before container before the user's name", func(t *T) {
		plain, given := t.create(nil), t.create(m{"env": []string{"USER=container"}})
		t.equal(t.say(plain, "echo $USER"), "root")
		t.equal(t.say(plain, "echo $USER", "user", "alice", "env", []string{"NOT_USER=x"}), "alice")
		t.equal(t.say(given, "echo $USER", "user", "alice"), "container")
		t.equal(t.say(given, "echo $USER", "env", []string{"USER=process"}), "process")
	})
	a.check("the program is looked for in the process's own PATH", func(t *T) {
		h := t.create(nil)
		p := t.start(h, m{"path": "here", "env": []string{"PATH=/bin/own-path:/bin"}})
		t.equal(t.end(p), Done{0, "here\n", ""})
		_, err := t.Run(h, m{"path": "only-root-looks-here", "user": "alice"})
		t.want(isType(err, "ExecutableNotFoundError"), err)
		t.equal(t.end(t.start(h, m{"path": "only-root-looks-here"})).Out, "hello world\n")
	})
	a.check("a program that is not there, by name, path, and with a terminal", func(t *T) {
		h := t.create(nil)
		for _, spec := range []m{{"path": "nope"}, {"path": "/bin/nope"}, {"path": "nope", "tty": m{}}} {
			_, err := t.Run(h, spec)
			t.want(isType(err, "ExecutableNotFoundError"), err)
		}
	})
	for n, name := range []string{"TERM", "KILL"} {
		a.check("attach, then "+name+"", func(t *T) {
			h := t.create(nil)
			p := t.start(h, sh("echo here; exec sleep 12345"))
			t.until("here", func() bool { return p.Stdout.Has("here") })
			other, err := t.Attach(h, p.ID)
			t.must(err)
			t.must(other.Signal(n))
			t.equal(t.end(other).Code, []int{143, 137}[n])
			t.equal(t.end(p).Code, []int{143, 137}[n])
		})
	}
	a.check("children of a dead process are no zombies", func(t *T) {
		h := t.create(nil)
		t.say(h, "for i in 1 2 3 4 5; do (sleep 0.1 >/dev/null 2>&1 &); done")
		t.until("no children", func() bool { return t.say(h, "ps -o stat,args | grep -cE '[s]leep|^Z'; true") == "0" })
	})
	a.check("a client that goes leaves its process running", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh("cat >/dev/null; echo ended >/stdin; exec sleep 12345", "id", "left"))
		p.Leave()
		t.until("the end of its input", func() bool { return t.do(h, "cat /stdin").Out == "ended\n" })
		other, err := t.Attach(h, "left")
		t.must(err)
		t.must(other.Signal(1))
		t.equal(t.end(other).Code, 137)
	})
	a.check("output that nobody reads stops no process", func(t *T) {
		p, err := t.Control(t.create(nil), sh("dd if=/dev/zero bs=1M count=200 2>/dev/null; exit 9"))
		t.must(err)
		t.equal(t.end(p).Code, 9)
	})
	a.check("output of what has ended can still be read", func(t *T) {
		p, err := t.Control(t.create(nil), sh("echo late; exit 3"))
		t.must(err)
		t.equal(t.end(p).Code, 3)
		_, reader, err := t.output(p.handle, p.ID, p.Stream, "stdout")
		t.must(err)
		line, err := reader.ReadString('\n')
		t.must(err)
		t.equal(line, "late\n")
	})
}
