package main

import (
	"slices"
	"strings"
)

func limits(a *Area) {
	memory := func(bytes int) m { return m{"limits": m{"memory_limits": m{"limit_in_bytes": bytes}}} }
	a.check("memory holds for /dev/shm", func(t *T) {
		t.want(t.do(t.create(memory(64<<20)), "dd if=/dev/zero of=/dev/shm/f bs=1M count=65").Code != 0)
		t.say(t.create(memory(64<<20)), "dd if=/dev/zero of=/dev/shm/f bs=1M count=58")
	})
	a.check("memory holds for a process", func(t *T) {
		h := t.create(memory(64 << 20))
		t.equal(t.do(h, "exec dd if=/dev/zero of=/dev/null bs=100M count=1").Code, 137)
		t.say(h, "echo the container is still there")
	})
	a.check("what was killed for want of memory is an event", func(t *T) {
		h := t.create(memory(64 << 20))
		t.equal(t.do(h, "exec dd if=/dev/zero of=/dev/null bs=100M count=1").Code, 137)
		t.until("the event", func() bool {
			events, _ := t.get(h, "info")["Events"].([]any)
			return slices.Contains(events, any("Out of memory"))
		})
	})
	a.check("a storm of forks ends at the limit", func(t *T) {
		h := t.create(m{"limits": m{"pid_limits": m{"max": 50}}})
		done := t.do(h, "for i in $(seq 60); do sleep 12345 >/dev/null 2>&1 & done")
		t.want(done.Code == 2 && strings.Contains(done.Err, "can't fork"), done)
	})
	a.check("no limit of processes is no limit", func(t *T) {
		h := t.create(m{"limits": m{"pid_limits": m{"max": 0}}})
		t.say(h, "for i in $(seq 60); do sleep 0.1 & done; wait")
	})
	a.check("open files", func(t *T) {
		done := t.do(t.create(nil), "exec 30</etc/passwd", "rlimits", m{"nofile": 30})
		t.want(done.Code == 1 && strings.Contains(done.Err, "Bad file descriptor"), done)
		t.say(t.create(nil), "exec 29</etc/passwd", "rlimits", m{"nofile": 30})
	})
	a.check("processes of a user", func(t *T) {
		t.equal(t.say(t.create(nil), "ulimit -u", "rlimits", m{"nproc": 4567}), "4567")
	})
	a.check("every limit of a process can be set, down at least", func(t *T) {
		h := t.create(nil)
		lines := map[string]string{"as": "address space", "core": "core file size", "cpu": "cpu time", "data": "data size",
			"fsize": "file size", "locks": "file locks", "memlock": "locked memory", "msgqueue": "msgqueue size",
			"nice": "nice priority", "nofile": "open files", "nproc": "processes", "rss": "resident set",
			"rtprio": "realtime priority", "sigpending": "pending signals", "stack": "stack size"}
		for name, line := range lines {
			value, seen := 1<<16, "65536"
			switch name {
			case "nice", "rtprio":
				value, seen = 0, "0"
			case "nofile", "nproc", "sigpending", "locks", "cpu":
				value, seen = 4321, "4321"
			case "as", "data", "stack":
				value, seen = 4<<20, "4194304"
			}
			got := fields(t.say(h, "grep 'Max "+line+"' /proc/self/limits", "rlimits", m{name: value}))[0]
			words := len(strings.Fields(line)) + 1
			t.want(got[words] == seen && got[words+1] == seen, name, strings.Join(got, " "))
		}
	})
	a.check("limits above the server's own", func(t *T) {
		h := t.create(m{"privileged": true})
		limit := 1<<20 + 1
		got := t.say(h, "ulimit -n; ulimit -Hn", "rlimits", m{"nofile": limit})
		if got == "1048577\n1048577" {
			return
		}
		// A server that lacks CAP_SYS_RESOURCE cannot raise them: then they are what they were.
		bounding := fields(t.say(h, "grep CapBnd /proc/self/status"))[0][1]
		t.want(got == t.say(h, "ulimit -Hn; ulimit -Hn") && bounding == "0000003ffeffffff", got, bounding)
	})
}
