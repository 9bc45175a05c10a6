package main

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

func peas(a *Area) {
	own := func(t *T, more ...any) []any { return append([]any{"image", m{"uri": t.image}}, more...) }
	kinds := []string{"mnt", "net", "ipc", "pid", "user", "uts"}
	links := "for n in " + strings.Join(kinds, " ") + "; do readlink /proc/self/ns/$n; done"
	for _, privileged := range []bool{false, true} {
		name := map[bool]string{false: "", true: ", privileged"}[privileged]
		a.check("shares all namespaces but that of mounts"+name, func(t *T) {
			h := t.create(m{"privileged": privileged})
			box, pea := strings.Fields(t.say(h, links)), strings.Fields(t.say(h, links, own(t)...))
			for n, kind := range kinds {
				t.want((box[n] == pea[n]) == (kind != "mnt"), kind, box, pea)
			}
		})
		a.check("has a root file system of its own"+name, func(t *T) {
			h := t.create(m{"privileged": privileged})
			t.say(h, "touch /the-container-was-here")
			t.say(h, "test ! -e /the-container-was-here && touch /the-pea-was-here", own(t)...)
			t.say(h, "test ! -e /the-pea-was-here")
		})
	}
	a.check("users", func(t *T) {
		h := t.create(nil)
		for user, want := range map[string]string{"": "0:0", "1001:1002": "1001:1002", "operator": "37:37"} {
			t.equal(t.say(h, "echo $(id -u):$(id -g)", own(t, "user", user)...), want)
		}
		_, err := t.Run(h, sh("true", own(t, "user", "invalid-user")...))
		t.want(says(err, "unable to find user invalid-user: no matching entries in passwd file"), err)
		_, err = t.Run(h, sh("true", own(t, "user", "root:root")...))
		t.want(says(err, "'root:root' is not a valid uid:gid"), err)
	})
	a.check("exit status and outputs", func(t *T) {
		t.equal(t.do(t.create(nil), "echo out; echo err >&2; exit 123", own(t)...), Done{123, "out\n", "err\n"})
	})
	a.check("shares hosts and resolv.conf, both ways", func(t *T) {
		h := t.create(nil)
		for _, file := range []string{"/etc/hosts", "/etc/resolv.conf"} {
			t.say(h, "echo '# of the container' >>"+file)
			t.say(h, "grep -q 'of the container' "+file+" && echo '# of the pea' >>"+file, own(t)...)
			t.say(h, "grep -q 'of the pea' "+file)
		}
	})
	a.check("its working directory is the root, or what was asked for", func(t *T) {
		h := t.create(nil)
		t.equal(t.say(h, "pwd", own(t)...), "/")
		t.equal(t.say(h, "pwd", own(t, "dir", "/home")...), "/home")
	})
	a.check("a trap of TERM", func(t *T) {
		p := t.start(t.create(nil), sh(trap, own(t)...))
		t.until("ready", func() bool { return p.Stdout.Has("ready") })
		t.must(p.Signal(0))
		t.equal(t.end(p).Code, 42)
	})
	a.check("a program that is not there", func(t *T) {
		_, err := t.Run(t.create(nil), m{"path": "does-not-exist", "image": m{"uri": t.image}})
		t.want(says(err, "executable file not found in $PATH"), err)
	})
	a.check("an image that is not there", func(t *T) {
		h := t.create(nil)
		_, err := t.Run(h, m{"path": "true", "image": m{"uri": "/does/not/exist.tar"}})
		t.want(isType(err, ""), err)
		t.say(h, "echo the container does not mind")
	})
	a.check("lives by the container's limits", func(t *T) {
		h := t.create(m{"limits": m{"memory_limits": m{"limit_in_bytes": 64 << 20}, "pid_limits": m{"max": 15}}})
		t.say(h, "dd if=/dev/zero of=/dev/shm/f bs=1M count=5")
		t.want(t.do(h, "dd if=/dev/zero of=/dev/shm/f bs=1M count=60", own(t)...).Code != 0)
		// All of them at once, even on a busy machine.
		t.want(t.do(h, "for i in $(seq 20); do sleep 2 & done; wait", own(t)...).Code != 0)
	})
	a.check("with limits of its own, even empty ones, those of the container do not count", func(t *T) {
		h := t.create(m{"limits": m{"memory_limits": m{"limit_in_bytes": 48 << 20}, "pid_limits": m{"max": 15}}})
		t.say(h, "dd if=/dev/zero of=/dev/shm/f bs=1M count=60", own(t, "limits", m{})...)
		t.say(h, "for i in $(seq 20); do sleep 0.1 & done; wait", own(t, "limits", m{})...)
	})
	a.check("its own memory limit holds", func(t *T) {
		h := t.create(m{"limits": m{"memory_limits": m{"limit_in_bytes": 64 << 20}}})
		got := t.do(h, "dd if=/dev/zero of=/dev/null bs=40M count=1",
			own(t, "limits", m{"memory_limits": m{"limit_in_bytes": 32 << 20}})...)
		t.want(got.Code != 0 && strings.Contains(got.Err, "Killed") || got.Code == 137, got)
		t.say(h, "dd if=/dev/zero of=/dev/null bs=40M count=1")
	})
	a.check("ends with its container, with 137", func(t *T) {
		h := t.create(nil)
		p := t.start(h, sh("echo here; exec sleep 12345", own(t)...))
		t.until("here", func() bool { return p.Stdout.Has("here") })
		t.must(t.Call("DELETE", "/containers/"+h, nil, nil, nil))
		t.equal(t.end(p).Code, 137)
	})
	a.check("has metrics by its own name", func(t *T) {
		h, id := t.create(nil), t.unique("pea")
		p := t.start(h, sh("dd if=/dev/zero of=/dev/shm/f bs=1M count=1; echo here; exec sleep 12345",
			own(t, "id", id, "limits", m{})...))
		t.until("here", func() bool { return p.Stdout.Has("here") })
		t.until("memory", func() bool {
			var got map[string]struct {
				Metrics struct{ MemoryStat map[string]uint64 }
				Err     *Error
			}
			t.must(t.Call("GET", "/containers/bulk_metrics", url.Values{"handles": {id}}, nil, &got))
			t.want(got[id].Err == nil, got[id].Err)
			return got[id].Metrics.MemoryStat["TotalUsageTowardLimit"] > 0
		})
		t.must(p.Signal(1))
		t.end(p)
	})
	a.check("sees its own bind mounts, not the container's", func(t *T) {
		of, its := t.folder(), t.folder()
		for dir, name := range map[string]string{of: "container", its: "pea"} {
			t.must(os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		}
		h := t.create(m{"bind_mounts": []m{{"src_path": of, "dst_path": "/mnt/container"}}})
		got := t.say(h, "ls /mnt; ls /mnt/pea", own(t, "bind_mounts", []m{{"src_path": its, "dst_path": "/mnt/pea"}})...)
		t.equal(got, "pea\npea")
		t.equal(t.say(h, "ls /mnt /mnt/container"), "/mnt:\ncontainer\n\n/mnt/container:\ncontainer")
	})
	a.check("its environment is not the container's", func(t *T) {
		h := t.create(m{"env": []string{"FROM=container"}})
		got := t.say(h, "echo ${FROM:-none} $USER $HOME", own(t, "user", "1001:1010")...)
		t.equal(got, "none 1001:1010 /home/alice")
	})
	a.check("leaves nothing behind in its container", func(t *T) {
		h := t.create(nil)
		before := t.say(h, "ls /proc/1/fd | wc -l; cat /proc/mounts | wc -l")
		for range 3 {
			t.say(h, "true", own(t)...)
		}
		_, err := t.Run(h, m{"path": "does-not-exist", "image": m{"uri": t.image}})
		t.want(err != nil)
		t.equal(t.say(h, "ls /proc/1/fd | wc -l; cat /proc/mounts | wc -l"), before)
		t.equal(t.say(h, "ps -o args | grep -c [g]arden-init"), "1")
	})
	a.check("a name that runs already", func(t *T) {
		h, id := t.create(nil), t.unique("pea")
		p := t.start(h, sh("read line", own(t, "id", id)...))
		_, err := t.Run(h, sh("true", own(t, "id", id)...))
		t.want(isType(err, ""), err)
		t.must(p.CloseStdin())
		t.end(p)
	})
}
