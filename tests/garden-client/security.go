package main

import (
	"os"
	"strconv"
	"strings"
)

func readNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func security(a *Area) {
	a.check("only its own processes are to be seen", func(t *T) {
		h := t.create(nil)
		p := t.start(h, m{"path": "sleep", "args": []string{"12345"}})
		ps := t.end(t.start(h, m{"path": "ps", "args": []string{"-o", "args"}}))
		var names []string
		for _, line := range fields(ps.Out)[1:] {
			names = append(names, line[0])
		}
		t.want(len(names) == 3 && strings.Contains(names[0], "garden-init") && names[1] == "sleep" && names[2] == "ps", names)
		t.must(p.Signal(1))
		t.end(p)
	})
	a.check("no open files but its three", func(t *T) {
		got := t.end(t.start(t.create(nil), m{"path": "ls", "args": []string{"/proc/self/fd"}})).Out
		t.equal(got, "0\n1\n2\n3\n")
	})
	a.check("/tmp is everybody's, /sys is read-only", func(t *T) {
		h := t.create(nil)
		t.equal(t.say(h, "stat -c %A /tmp"), "drwxrwxrwt")
		t.want(strings.HasPrefix(fields(t.say(h, "grep ' /sys ' /proc/mounts"))[0][3], "ro,"))
	})
	a.check("privileged: /proc is writable, no cgroups are mounted", func(t *T) {
		h := t.create(m{"privileged": true})
		t.want(strings.HasPrefix(fields(t.say(h, "grep '^proc /proc ' /proc/mounts"))[0][3], "rw,"))
		t.equal(t.say(h, "grep -c cgroup /proc/mounts; true"), "0")
	})
	a.check("cgroups are read-only, and its processes are in them", func(t *T) {
		h := t.create(nil)
		mounts := fields(t.say(h, "grep ' cgroup2\\? ' /proc/mounts"))
		t.want(len(mounts) > 0)
		for _, mount := range mounts {
			t.want(strings.HasPrefix(mount[3], "ro,"), strings.Join(mount, " "))
		}
		if t.v2(h) {
			t.say(h, "grep -qx $$ /sys/fs/cgroup/cgroup.procs")
			return
		}
		for _, name := range []string{"cpu", "cpuacct", "cpuset", "devices", "memory"} {
			t.say(h, "grep -qx $$ /sys/fs/cgroup/"+name+"/cgroup.procs")
		}
	})
	caps := func(t *T, h string, more ...any) map[string]string {
		got := map[string]string{}
		for _, line := range fields(t.say(h, "grep Cap /proc/self/status", more...)) {
			got[strings.TrimSuffix(line[0], ":")] = line[1]
		}
		return got
	}
	const zero, unprivileged = "0000000000000000", "00000000a80425fb"
	for _, pea := range []bool{false, true} {
		name := map[bool]string{false: "", true: ", in a pea"}[pea]
		more := func(t *T, user string) []any {
			if pea {
				return []any{"user", user, "image", m{"uri": t.image}}
			}
			return []any{"user", user}
		}
		a.check("capabilities"+name, func(t *T) {
			h := t.create(nil)
			t.equal(caps(t, h, more(t, "0:0")...), map[string]string{"CapInh": unprivileged, "CapPrm": unprivileged,
				"CapEff": unprivileged, "CapBnd": unprivileged, "CapAmb": zero})
			t.equal(caps(t, h, more(t, "1000:1000")...), map[string]string{"CapInh": unprivileged, "CapPrm": zero,
				"CapEff": zero, "CapBnd": unprivileged, "CapAmb": zero})
			// What a user keeps depends on his group: that of root keeps what root keeps.
			t.equal(caps(t, h, more(t, "1000:0")...)["CapBnd"], unprivileged)
		})
		a.check("capabilities, privileged"+name, func(t *T) {
			h := t.create(m{"privileged": true})
			root := caps(t, h, more(t, "0:0")...)
			// A server that lacks a capability can give none of it.
			bounding, err := strconv.ParseUint(root["CapBnd"], 16, 64)
			t.must(err)
			t.want(bounding&^uint64(0x3fffffffff) == 0 && bounding&0xa80425fb == 0xa80425fb, root)
			t.want(root["CapInh"] == root["CapBnd"] && root["CapPrm"] == root["CapBnd"] && root["CapEff"] == root["CapBnd"], root)
			t.equal(caps(t, h, more(t, "1000:1000")...), map[string]string{"CapInh": "00000000a82425fb", "CapPrm": zero,
				"CapEff": zero, "CapBnd": "00000000a82425fb", "CapAmb": zero})
		})
	}
	a.check("capabilities of process 1", func(t *T) {
		got := t.say(t.create(nil), "grep -E 'Cap(Inh|Prm|Eff|Bnd)' /proc/1/status")
		t.equal(strings.Count(got, unprivileged), 4)
	})
	a.check("root of a container is not root of the kernel", func(t *T) {
		h := t.create(nil)
		for _, denied := range []string{"echo b >/proc/sysrq-trigger", "echo x >/proc/sys/kernel/hostname", "mount -t tmpfs none /mnt",
			"umount /proc", "hostname changed", "touch /sys/x", "echo 1 >/proc/sys/vm/drop_caches"} {
			t.want(t.do(h, denied).Code != 0, denied)
		}
		got := t.do(h, "date -s 2020-01-01")
		t.want(strings.Contains(got.Err, "Operation not permitted"), got)
		t.say(h, "touch /root/mine")
		t.say(t.create(m{"privileged": true}), "touch /root/mine")
	})
	kinds := []string{"net", "ipc", "uts", "pid", "mnt", "user"}
	spaces := func(t *T, h string, more ...any) map[string]string {
		got := map[string]string{}
		for n, line := range strings.Fields(t.say(h, "for n in "+strings.Join(kinds, " ")+"; do readlink /proc/self/ns/$n; done", more...)) {
			got[kinds[n]] = line
		}
		return got
	}
	a.check("two containers share no namespace", func(t *T) {
		one, other := spaces(t, t.create(nil)), spaces(t, t.create(nil))
		for _, kind := range kinds {
			t.want(one[kind] != "" && one[kind] != other[kind], kind, one, other)
		}
	})
	a.check("privileged ones have the host's user namespace", func(t *T) {
		one, other := spaces(t, t.create(m{"privileged": true})), spaces(t, t.create(m{"privileged": true}))
		for _, kind := range kinds {
			t.want((one[kind] == other[kind]) == (kind == "user"), kind, one, other)
		}
		t.equal(fields(t.say(t.create(m{"privileged": true}), "cat /proc/self/uid_map"))[0][0:2], []string{"0", "0"})
	})
	a.check("a user who becomes root, privileged", func(t *T) {
		h := t.create(m{"privileged": true})
		got := t.do(h, `touch /tmp/f; /bin/su root -c "chown bob /tmp/f && id -u; date -s 2020-01-01"; stat -c %U /tmp/f`, "user", "alice")
		t.want(strings.HasPrefix(got.Out, "0\n") && strings.HasSuffix(got.Out, "bob\n"), got)
		t.want(strings.Contains(got.Err, "Operation not permitted"), got.Err)
	})
}
