package main

import (
	"math"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// weightOf is cgroup v2's weight for v1's shares, as the API reports it there.
func weightOf(shares uint64) float64 {
	if shares <= 2 {
		return 1
	}
	l := math.Log2(float64(shares))
	return math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34))
}

func lifecycle(a *Area) {
	a.check("a memory limit is given back", func(t *T) {
		h := t.create(m{"limits": m{"memory_limits": m{"limit_in_bytes": 128 << 20}}})
		t.equal(t.get(h, "limits/memory"), m{"limit_in_bytes": float64(128 << 20)})
	})
	for _, given := range []struct {
		name, key string
		shares    uint64
	}{{"shares", "limit_in_shares", 512}, {"a weight", "weight", 100}} {
		a.check("a cpu limit in "+given.name+" is given back in shares", func(t *T) {
			h := t.create(m{"limits": m{"cpu_limits": m{given.key: given.shares}}})
			want := float64(given.shares)
			if t.v2(h) {
				want = weightOf(given.shares)
			}
			t.equal(t.get(h, "limits/cpu"), m{"limit_in_shares": want})
		})
	}
	a.check("a weight goes before shares; neither is the kernel's default", func(t *T) {
		h := t.create(m{"limits": m{"cpu_limits": m{"weight": 300, "limit_in_shares": 700}}})
		want := float64(300)
		if t.v2(h) {
			want = weightOf(300)
		} else {
			t.equal(t.say(h, "cat /sys/fs/cgroup/cpu/cpu.shares"), "300")
			t.equal(t.say(t.create(nil), "cat /sys/fs/cgroup/cpu/cpu.shares"), "1024")
		}
		t.equal(t.get(h, "limits/cpu"), m{"limit_in_shares": want})
	})
	a.check("disk and bandwidth limits are empty", func(t *T) {
		h := t.create(nil)
		t.equal(t.get(h, "limits/disk"), m{})
		t.equal(t.get(h, "limits/bandwidth"), m{})
	})
	a.check("a handle in use is refused, in these words", func(t *T) {
		h := t.create(nil)
		_, err := t.tryCreate(m{"handle": h})
		t.want(isType(err, "") && err.(*Error).Message == "Handle '"+h+"' already in use", err)
	})
	a.check("a handle is made up where none is given", func(t *T) {
		h := t.create(m{"handle": ""})
		t.want(regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(h), h)
	})
	for _, which := range []string{"uid", "gid"} {
		a.check("the map of every "+which, func(t *T) {
			got := fields(t.say(t.create(nil), "cat /proc/self/"+which[:3]+"_map"))
			t.equal(got, [][]string{{"0", "4294967294", "1"}, {"1", "1", "4294967293"}})
		})
	}
	a.check("destroying an unknown handle", func(t *T) {
		err := t.Call("DELETE", "/containers/not-a-real-handle", nil, nil, nil)
		t.want(isType(err, "ContainerNotFoundError"), err)
		t.equal(*err.(*Error), Error{"ContainerNotFoundError", "unknown handle: not-a-real-handle", "not-a-real-handle", "", ""})
	})
	a.check("any user may write to /dev/shm", func(t *T) {
		t.say(t.create(nil), "dd if=/dev/zero of=/dev/shm/f bs=64k count=1", "user", "alice")
	})
	a.check("how /dev/shm is mounted", func(t *T) {
		got := t.say(t.create(nil), "grep /dev/shm /proc/mounts")
		t.want(strings.HasPrefix(got, "tmpfs /dev/shm tmpfs rw,nosuid,nodev,noexec,relatime"), got)
	})
	a.check("the host's name is the handle", func(t *T) {
		h := t.create(nil)
		t.equal(t.say(h, "hostname"), h)
	})
	a.check("the host's name is the end of a long handle", func(t *T) {
		h := t.create(m{"handle": t.unique(strings.Repeat("long-", 12))})
		t.equal(t.say(h, "hostname"), h[len(h)-49:])
	})
	a.check("the name of process 1", func(t *T) {
		got := t.say(t.create(nil), "head -n1 /proc/1/status")
		t.want(strings.Contains(got, "garden-init"), got)
	})
	a.check("what was created is listed", func(t *T) {
		var made []string
		for range 3 {
			made = append(made, t.create(nil))
		}
		all := t.list(nil)
		for _, h := range made {
			t.want(slices.Contains(all, h), h, all)
		}
	})
	a.check("a new container is active", func(t *T) {
		t.equal(t.get(t.create(nil), "info")["State"], "active")
	})
	a.check("a container is never listed without its properties", func(t *T) {
		owner := t.unique("owner")
		done, made := make(chan error, 1), make([]string, 5)
		for n := range made {
			made[n] = t.unique("go")
		}
		go func() {
			var err error
			for _, handle := range made {
				if err == nil {
					err = t.Call("POST", "/containers", nil, m{"handle": handle, "properties": m{"owner": owner}}, nil)
				}
			}
			done <- err
		}()
		for {
			for _, h := range t.list(url.Values{"owner": {owner}}) {
				t.equal(t.get(h, "properties")["owner"], owner)
			}
			select {
			case err := <-done:
				for _, handle := range made {
					t.Call("DELETE", "/containers/"+handle, nil, nil, nil)
				}
				t.must(err)
				return
			default:
			}
		}
	})
	a.check("a handle can be used again after destroy", func(t *T) {
		h := t.unique("again")
		for range 2 {
			t.create(m{"handle": h})
			t.say(h, "test ! -e /mine; touch /mine")
			t.must(t.Call("DELETE", "/containers/"+h, nil, nil, nil))
		}
		t.want(!slices.Contains(t.list(url.Values{"garden.state": {"all"}}), h))
	})
	a.check("a failed create leaves nothing to be seen", func(t *T) {
		h := t.unique("failed")
		for range 2 {
			_, err := t.tryCreate(m{"handle": h, "image": m{"uri": "/does/not/exist.tar"}})
			t.want(isType(err, ""), err)
			t.want(!slices.Contains(t.list(url.Values{"garden.state": {"all"}}), h))
		}
		t.create(m{"handle": h})
	})
	a.check("two sources of a root file system are refused", func(t *T) {
		_, err := t.tryCreate(m{"rootfs": t.image})
		t.want(says(err, "Cannot provide both Image.URI and RootFSPath"), err)
		t.create(m{"image": m{}, "rootfs": t.image})
	})
	a.check("more containers than one user may have kernel keys", func(t *T) {
		const many = 210
		h := t.create(nil)
		// The host's nobody has the same number inside, and may have keys of his own.
		t.equal(t.say(h, "grep -v 65534: /proc/key-users | wc -l"), "0")
		handles, errs := make([]string, many), make([]error, many)
		const workers = 8
		together(workers, func(worker int) {
			for n := worker; n < many; n += workers {
				handles[n] = t.unique("keys")
				errs[n] = t.Call("POST", "/containers", nil, m{"handle": handles[n], "image": m{"uri": t.image}}, nil)
			}
		})
		together(workers, func(worker int) {
			for n := worker; n < many; n += workers {
				if errs[n] == nil {
					errs[n] = t.Call("DELETE", "/containers/"+handles[n], nil, nil, nil)
				}
			}
		})
		for _, err := range errs {
			t.must(err)
		}
	})
}
