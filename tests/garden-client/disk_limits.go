package main

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

const (
	mib = 1 << 20
	// Garden's limits of disks count the image (total), or what is written alone (exclusive).
	total, exclusive = 0, 1
)

// bounded is a container's specification with a disk limit. Schedulers send both the soft and the hard one.
func bounded(bytes uint64, scope int) m {
	return m{"limits": m{"disk_limits": m{"byte_soft": bytes, "byte_hard": bytes, "scope": scope}}}
}

// fill writes so many MiB to a file and says whether there was room for all of them.
func (t *T) fill(h, file string, size int, more ...any) bool {
	return t.do(h, fmt.Sprintf("dd if=/dev/zero of=%s bs=1M count=%d", file, size), more...).Code == 0
}

// near says whether two sizes differ by 1 MiB at most: directories and maps of files count too.
func near(got, want uint64) bool { return max(got, want)-min(got, want) <= mib }

// sizeOf is the size of all files in an image.
func sizeOf(path string) (bytes uint64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if err == io.EOF {
			return bytes, nil
		}
		if err != nil {
			return 0, err
		}
		bytes += uint64(header.Size)
	}
}

// diskLimits has checks of limits of root file systems, for a server whose store has a driver of them.
func diskLimits(a *Area) {
	if !a.diskLimits {
		return
	}
	for _, key := range []string{"ExclusiveBytesUsed", "TotalBytesUsed"} {
		a.check("what is written is in "+key+" at once", func(t *T) {
			h := t.create(bounded(100*mib, total))
			before := t.metrics(h).DiskStat[key]
			t.want(t.fill(h, "/home/alice/one", 3, "user", "alice"))
			used := t.metrics(h).DiskStat[key]
			t.want(near(used, before+3*mib), before, used)
			t.want(t.fill(h, "/home/alice/two", 10, "user", "alice"))
			used = t.metrics(h).DiskStat[key]
			t.want(near(used, before+13*mib), before, used)
		})
	}
	a.check("the image is in TotalBytesUsed, and not in ExclusiveBytesUsed", func(t *T) {
		used := t.metrics(t.create(bounded(20*mib, total))).DiskStat
		image, err := sizeOf(t.image)
		t.must(err)
		t.want(image > 2*mib && near(used["TotalBytesUsed"]-used["ExclusiveBytesUsed"], image), image, used)
		t.want(used["ExclusiveBytesUsed"] < mib, used)
	})
	a.check("in the total scope there is room beside the image", func(t *T) {
		h := t.create(bounded(20*mib, total))
		t.want(t.fill(h, "/root/test", 7))
	})
	a.check("in the total scope the image takes its part of the limit", func(t *T) {
		h := t.create(bounded(20*mib, total))
		t.want(!t.fill(h, "/root/test", 20))
		t.say(h, "echo the container is still there")
	})
	a.check("in the total scope an image larger than the limit is refused, and nothing is left", func(t *T) {
		name := t.unique("refused")
		spec := bounded(mib, total)
		spec["handle"] = name
		_, err := t.tryCreate(spec)
		t.want(says(err, "disk limit is smaller than volume size"), err)
		t.want(!slices.Contains(t.list(nil), name))
		// The handle is free, and what is written alone may be less than the image.
		t.create(m{"handle": name, "limits": bounded(mib, exclusive)["limits"]})
	})
	a.check("in the exclusive scope the whole limit can be written", func(t *T) {
		h := t.create(bounded(10*mib, exclusive))
		t.want(t.fill(h, "/root/test", 9))
	})
	a.check("in the exclusive scope more than the limit cannot be written", func(t *T) {
		h := t.create(bounded(10*mib, exclusive))
		t.want(!t.fill(h, "/root/test", 11))
	})
	a.check("all users of a container have one limit together", func(t *T) {
		h := t.create(bounded(10*mib, exclusive))
		t.want(t.fill(h, "/home/alice/test", 8, "user", "alice"))
		t.want(!t.fill(h, "/home/bob/test", 3, "user", "bob"))
	})
	for _, user := range []string{"alice", "bob"} {
		a.check("the limit holds for "+user, func(t *T) {
			h := t.create(bounded(10*mib, exclusive))
			t.want(!t.fill(h, "/home/"+user+"/test", 11, "user", user))
		})
	}
	a.check("each of two containers has its own limit, for the same user too", func(t *T) {
		one, other := t.create(bounded(50*mib, exclusive)), t.create(bounded(50*mib, exclusive))
		t.want(t.fill(one, "/tmp/some-file", 40, "user", "alice"))
		t.want(t.fill(other, "/tmp/some-file", 40, "user", "alice"))
		// Neither has what is left of the other's.
		t.want(!t.fill(one, "/tmp/another-file", 11, "user", "alice"))
		t.want(!t.fill(other, "/tmp/another-file", 11, "user", "alice"))
	})
	privileged := func() m {
		spec := bounded(10*mib, exclusive)
		spec["privileged"] = true
		return spec
	}
	a.check("the limit holds for root of a privileged container", func(t *T) {
		h := t.create(privileged())
		t.want(t.fill(h, "/root/within", 9))
		t.want(!t.fill(h, "/root/beyond", 2))
	})
	a.check("the limit holds for a new user of a privileged container", func(t *T) {
		h := t.create(privileged())
		t.say(h, "echo newcomer:x:3000:3000::/home/newcomer:/bin/sh >>/etc/passwd")
		t.say(h, "mkdir /home/newcomer && chown 3000:3000 /home/newcomer")
		t.want(t.fill(h, "/home/newcomer/within", 9, "user", "newcomer"))
		t.want(!t.fill(h, "/home/newcomer/beyond", 2, "user", "newcomer"))
	})
	a.check("two containers with 2 GiB, one after the other", func(t *T) {
		for range 2 {
			h := t.create(bounded(2<<30, exclusive))
			t.say(h, "echo here")
			t.destroy(h)
			t.want(!slices.Contains(t.list(nil), h))
		}
	})
	a.check("the getter tells a limit, and nothing where there is none", func(t *T) {
		got := t.get(t.create(bounded(20*mib, exclusive)), "limits/disk")
		t.equal(got["byte_hard"], float64(20*mib))
		t.equal(got["scope"], float64(exclusive))
		t.equal(t.get(t.create(nil), "limits/disk"), m{})
	})
	a.check("a limit of inodes holds, or is refused where the driver has none", func(t *T) {
		h, err := t.tryCreate(m{"limits": m{"disk_limits": m{"inode_hard": 100}}})
		if err != nil {
			t.want(says(err, "btrfs limits no inodes"), err)
			return
		}
		touch := "for n in $(seq %s); do : >/f$n || exit 1; done"
		t.say(h, fmt.Sprintf(touch, "70"))
		done := t.do(h, fmt.Sprintf(touch, "71 120"))
		t.want(done.Code != 0 && strings.Contains(done.Err, "/f"), done)
	})
	a.check("a soft limit without a hard one is refused", func(t *T) {
		for _, name := range []string{"byte_soft", "inode_soft"} {
			_, err := t.tryCreate(m{"limits": m{"disk_limits": m{name: 100 * mib}}})
			t.want(says(err, "limits.disk_limits."+name), err)
		}
	})
}
