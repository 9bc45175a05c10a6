package main

import (
	"os"
	"path/filepath"
	"strings"
)

// names has checks of the files hosts and resolv.conf that containers are given.
func names(a *Area) {
	if a.serve == "" {
		return
	}
	files := func(s *Server) (hosts, resolv string) {
		h := s.create(m{"handle": "c"})
		hosts, resolv = s.say(h, "cat /etc/hosts"), s.say(h, "cat /etc/resolv.conf")
		hosts = strings.ReplaceAll(hosts, s.info(h, "ContainerIP"), "IP")
		resolv = strings.ReplaceAll(resolv, s.info(h, "HostIP"), "BRIDGE")
		s.destroy(h)
		return
	}
	a.check("more lines of hosts stand in order", func(t *T) {
		s := t.server("--additional-host-entry", "10.0.0.5 cell", "--additional-host-entry", "10.0.0.6 b  # as it is")
		hosts, _ := files(s)
		t.equal(hosts, "127.0.0.1 localhost\nIP c\n10.0.0.5 cell\n10.0.0.6 b  # as it is")
		long := strings.Repeat("long-", 12) + "handle"
		h := s.create(m{"handle": long})
		t.equal(fields(s.say(h, "cat /etc/hosts"))[1], []string{s.info(h, "ContainerIP"), long[len(long)-49:]})
	})
	a.check("name servers: flags, the host's file, and what is added", func(t *T) {
		s := t.prepare()
		pools := s.flags
		host := filepath.Join(t.folder(), "resolv.conf")
		s.mounts = []string{host, t.host("readlink -f /etc/resolv.conf")}
		const first, second, more = "--dns-server=1.1.1.1", "--dns-server=2.2.2.2", "--additional-dns-server=3.3.3.3"
		for _, each := range []struct {
			host  string
			flags []string
			want  string
		}{
			{"nameserver 9.9.9.9\n", []string{first, second}, "nameserver 1.1.1.1\nnameserver 2.2.2.2"},
			{"nameserver 9.9.9.9\n", []string{first, more}, "nameserver 1.1.1.1\nnameserver 3.3.3.3"},
			{"nameserver 127.0.0.1\n", nil, "nameserver BRIDGE"},
			{"nameserver 127.0.0.1\n", []string{more}, "nameserver BRIDGE\nnameserver 3.3.3.3"},
			{"nameserver 127.0.0.1\nnameserver 9.9.9.9\n", nil, "nameserver 9.9.9.9"},
			{"# a comment\nsearch a.b c\n\nnameserver 9.9.9.9\nnameserver 127.0.0.5\noptions ndots:2\n", []string{more},
				"# a comment\nsearch a.b c\nnameserver 9.9.9.9\noptions ndots:2\nnameserver 3.3.3.3"},
			{"nameserver not-an-address\nnameserver 9.9.9.9\n", nil, "nameserver 9.9.9.9"},
		} {
			t.must(os.WriteFile(host, []byte(each.host), 0o644))
			s.flags = append(append([]string{}, each.flags...), pools...)
			s.up()
			_, resolv := files(s)
			t.want(resolv == each.want, each.host, each.flags, resolv, each.want)
			t.must(s.end(15))
		}
		s.up()
	})
	a.check("a name server of the host may be asked, if the operator names it", func(t *T) {
		s := t.server("--dns-server", hostIP, "--deny-network", "0.0.0.0/0")
		listens := s.follow("serve", "host", "53")
		other := s.follow("serve", "host", "54")
		s.until("the host listens", func() bool { return listens.Has("ready") && other.Has("ready") })
		h := s.create(nil)
		for _, how := range []string{"tcp", "udp"} {
			t.equal(s.ask(h, how, hostIP, 53), "ok host from "+s.info(h, "ContainerIP"))
			t.equal(s.ask(h, how, hostIP, 54), refused)
		}
	})
}
