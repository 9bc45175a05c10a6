package main

import (
	"fmt"
	"regexp"
	"strings"
)

func devices(a *Area) {
	nodes := map[string]string{"tty": "5:0", "random": "1:8", "urandom": "1:9", "null": "1:3", "zero": "1:5", "full": "1:7",
		"pts/ptmx": "5:2"}
	for _, privileged := range []bool{false, true} {
		name := map[bool]string{false: "", true: ", privileged"}[privileged]
		a.check("the usual ones, for everybody"+name, func(t *T) {
			h := t.create(m{"privileged": privileged})
			for node, number := range nodes {
				got := t.say(h, "stat -c '%F %t:%T %a' /dev/"+node, "user", "alice")
				t.equal(got, "character special file "+number+" 666")
			}
		})
		a.check("links to a process's own files"+name, func(t *T) {
			got := t.say(t.create(m{"privileged": privileged}), "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done")
			t.equal(got, "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx")
		})
		a.check("how /dev/pts is mounted"+name, func(t *T) {
			got := t.say(t.create(m{"privileged": privileged}), "grep ' /dev/pts ' /proc/mounts")
			want := `^devpts /dev/pts devpts rw,nosuid,noexec,relatime,gid=\d+,mode=620,ptmxmode=666`
			t.want(regexp.MustCompile(want).MatchString(got), got)
		})
	}
	a.check("they do what they should", func(t *T) {
		h := t.create(nil)
		t.equal(t.say(h, "head -c5 /dev/zero | wc -c; head -c5 /dev/urandom | wc -c; cat /dev/null | wc -c", "user", "alice"), "5\n5\n0")
		t.want(t.do(h, "echo x >/dev/full").Code != 0)
	})
	a.check("/dev/fuse, privileged", func(t *T) {
		t.equal(t.say(t.create(m{"privileged": true}), "stat -c '%F %t:%T' /dev/fuse"), "character special file a:e5")
	})
	a.check("no other device can be made or used", func(t *T) {
		h := t.create(nil)
		t.want(t.do(h, "mknod /tmp/disk b 7 0 && head -c1 /tmp/disk").Code != 0)
		p := t.create(m{"privileged": true})
		// Making it is allowed there, opening it is not: loop-control is on no list.
		t.want(t.do(p, "mknod /tmp/c c 10 237 && : </tmp/c").Code != 0)
	})
	a.check("files of the kernel that are hidden", func(t *T) {
		h := t.create(nil)
		for _, file := range []string{"kcore", "sched_debug", "timer_list", "keys", "timer_stats", "latency_stats"} {
			got := t.say(h, fmt.Sprintf("if [ -e /proc/%s ]; then stat -c '%%F %%t:%%T' /proc/%s; fi", file, file))
			t.want(got == "" || got == "character special file 1:3", file, got)
		}
	})
	a.check("folders of the kernel that are hidden", func(t *T) {
		got := t.say(t.create(nil), "for d in /proc/scsi /sys/firmware; do [ ! -e $d ] || ls -A $d; done")
		t.equal(strings.TrimSpace(got), "")
	})
}
