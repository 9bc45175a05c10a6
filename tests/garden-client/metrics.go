package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
)

// The numbers of a container, as far as something is expected of them.
type numbers struct {
	MemoryStat map[string]uint64
	CPUStat    struct{ Usage, User, System uint64 }
	DiskStat   map[string]uint64
	PidStat    struct{ Current, Max uint64 }
	Age        int64
}

// metrics are the numbers of a container.
func (t *T) metrics(h string) (n numbers) {
	t.must(t.Call("GET", "/containers/"+h+"/metrics", nil, nil, &n))
	return
}

func metrics(a *Area) {
	a.check("they need no info before", func(t *T) { t.metrics(t.create(nil)) })
	a.check("used cpu", func(t *T) {
		h := t.create(nil)
		t.until("cpu", func() bool {
			t.say(h, "dd if=/dev/zero of=/dev/null bs=1M count=50")
			return t.metrics(h).CPUStat.Usage > 0
		})
	})
	a.check("used memory", func(t *T) {
		h := t.create(nil)
		t.say(h, "dd if=/dev/zero of=/dev/shm/f bs=1M count=1")
		t.until("memory", func() bool { return t.metrics(h).MemoryStat["TotalUsageTowardLimit"] > 0 })
	})
	a.check("processes; none is the most", func(t *T) {
		n := t.metrics(t.create(nil))
		t.want(n.PidStat.Current > 0 && n.PidStat.Max == 0, n.PidStat)
	})
	a.check("most processes is the limit", func(t *T) {
		n := t.metrics(t.create(m{"limits": m{"pid_limits": m{"max": 128}}}))
		t.equal(n.PidStat.Max, uint64(128))
	})
	a.check("age", func(t *T) {
		n := t.metrics(t.create(nil))
		t.want(n.Age > 0, n.Age)
	})
	a.check("every number of memory and disk is there", func(t *T) {
		n := t.metrics(t.create(nil))
		for _, key := range []string{"active_anon", "active_file", "cache", "hierarchical_memory_limit", "inactive_anon",
			"inactive_file", "mapped_file", "pgfault", "pgmajfault", "pgpgin", "pgpgout", "rss", "total_active_anon",
			"total_active_file", "total_cache", "total_inactive_anon", "total_inactive_file", "total_mapped_file",
			"total_pgfault", "total_pgmajfault", "total_pgpgin", "total_pgpgout", "total_rss", "total_unevictable",
			"unevictable", "swap", "hierarchical_memsw_limit", "total_swap", "TotalUsageTowardLimit", "anon", "file", "swapcached"} {
			_, there := n.MemoryStat[key]
			t.want(there, key, n.MemoryStat)
		}
		for _, key := range []string{"TotalBytesUsed", "TotalInodesUsed", "ExclusiveBytesUsed", "ExclusiveInodesUsed"} {
			_, there := n.DiskStat[key]
			t.want(there, key, n.DiskStat)
		}
	})
	a.check("of an unknown handle", func(t *T) {
		err := t.Call("GET", "/containers/no-such-handle/metrics", nil, nil, nil)
		t.want(err != nil, err)
	})
	a.check("capacity: memory, disk, disk to give away, containers", func(t *T) {
		var got map[string]uint64
		t.must(t.Call("GET", "/capacity", nil, nil, &got))
		for _, key := range []string{"memory_in_bytes", "disk_in_bytes", "schedulable_disk_in_bytes", "max_containers"} {
			t.want(got[key] > 0, key, got)
		}
	})
	if a.debug != "" {
		a.check("the debug address has numbers", func(t *T) {
			network, host := "tcp", a.debug
			if strings.HasPrefix(a.debug, "/") {
				network, host = "unix", "debug"
			}
			client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
				return net.Dial(network, a.debug)
			}, DisableKeepAlives: true}}
			reply, err := client.Get("http://" + host + "/debug/vars")
			t.must(err)
			defer reply.Body.Close()
			var got struct{ Memstats struct{ Alloc uint64 } }
			t.must(json.NewDecoder(reply.Body).Decode(&got))
			t.want(got.Memstats.Alloc > 0, got)
		})
	}
}
