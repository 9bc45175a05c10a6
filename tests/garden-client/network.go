package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What the checks expect of the network in which the client runs: README.md.
const (
	hostIP    = "10.77.0.2"
	neighbour = "10.77.0.1"
	internet  = "8.8.8.8"
	internet2 = "9.9.9.9"
	// What a client in a container hears of an address that is refused.
	refused = "EHOSTUNREACH"
	// What one hears whom the internet answers: the address from which it was asked.
	answered = "ok from " + hostIP
	// Where containers listen.
	port = 8080
)

// netIn maps a port; the host's and the container's.
func (t *T) netIn(h string, host, container int) (int, int, error) {
	var reply struct {
		HostPort      int `json:"host_port"`
		ContainerPort int `json:"container_port"`
	}
	asked := m{"handle": h, "host_port": host, "container_port": container}
	err := t.Call("POST", "/containers/"+h+"/net/in", nil, asked, &reply)
	return reply.HostPort, reply.ContainerPort, err
}

// mapped maps a port of the pool to one of the container.
func (t *T) mapped(h string, container int) int {
	host, inside, err := t.netIn(h, 0, container)
	t.must(err)
	t.equal(inside, container)
	return host
}

func (t *T) netOut(h string, rule m) error {
	return t.Call("POST", "/containers/"+h+"/net/out", nil, rule, nil)
}

func (t *T) bulkNetOut(h string, rules ...m) error {
	return t.Call("POST", "/containers/"+h+"/net/out/bulk", nil, rules, nil)
}

// to is a rule for one address and protocol (1 TCP, 2 UDP, 3 ICMP), and a port if it is not 0.
func to(address string, protocol, port int) m {
	rule := m{"protocol": protocol, "networks": []m{{"start": address, "end": address}}}
	if port != 0 {
		rule["ports"] = []m{{"start": port, "end": port}}
	}
	return rule
}

// ask asks an address from a container ("tcp" or "udp"): "ok ANSWER", or why there was none.
func (t *T) ask(h, how, address string, port int) string {
	return strings.TrimSpace(t.do(h, fmt.Sprintf("net %s %s %d", how, address, port)).Out)
}

// away asks from outside of the host.
func (t *T) away(how, address string, port int) string {
	return t.host(fmt.Sprintf("nsenter --net=%s %s %s %s %d || true", t.outside, t.probe, how, address, port))
}

// here asks from the host.
func (t *T) here(how, address string, port int) string {
	return t.host(fmt.Sprintf("%s %s %s %d || true", t.probe, how, address, port))
}

// listen answers in a container with its handle, and returns the process.
func (t *T) listen(h string, port int) *Process {
	p := t.start(h, sh(fmt.Sprintf("exec net serve %s %d", h, port)))
	t.until("it listens", func() bool { return p.Stdout.Has("ready") })
	return p
}

func (t *T) pings(h, address string) bool { return t.do(h, "ping -c1 -W2 "+address).Code == 0 }

// info is a text of an info.
func (t *T) info(h, key string) string {
	text, _ := t.get(h, "info")[key].(string)
	return text
}

func (t *T) property(h, key string) string {
	value, _ := t.get(h, "properties/"+key)["value"].(string)
	return value
}

func (t *T) destroy(h string) { t.must(t.Call("DELETE", "/containers/"+h, nil, nil, nil)) }

// network has checks with servers of their own, in the namespace of the client.
func network(a *Area) {
	if a.serve == "" {
		return
	}
	// Most need no more than any server: they share one.
	shared := sync.OnceValue(func() *Server {
		owner := &T{Suite: a.Suite}
		server := owner.server("--dns-server", internet)
		a.last = append(a.last, func() error {
			owner.clean()
			return owner.late
		})
		return server
	})
	check := func(name string, body func(*T)) {
		a.check(name, func(t *T) {
			t.Suite = shared().Suite
			body(t)
		})
	}
	check("a port of the pool leads to a listener", func(t *T) {
		h := t.create(nil)
		t.listen(h, port)
		mapped := t.mapped(h, port)
		t.equal(t.away("tcp", hostIP, mapped), "ok "+h+" from "+neighbour)
		t.want(strings.HasPrefix(t.here("tcp", hostIP, mapped), "ok "+h))
	})
	check("ports that are asked for, at creation and later", func(t *T) {
		h := t.create(m{"netin": []m{{"host_port": 7101, "container_port": port}, {"container_port": port}}})
		t.listen(h, port)
		t.listen(h, 7102)
		host, inside, err := t.netIn(h, 7102, 0)
		t.must(err)
		t.equal([]int{host, inside}, []int{7102, 7102})
		ports := t.get(h, "info")["MappedPorts"].([]any)
		t.equal(len(ports), 3)
		for _, each := range ports {
			t.equal(t.away("tcp", hostIP, int(each.(m)["HostPort"].(float64))), "ok "+h+" from "+neighbour)
		}
		t.equal(ports[0], m{"HostPort": 7101.0, "ContainerPort": float64(port)})
	})
	check("who reads the rules sees whose they are", func(t *T) {
		h := t.create(m{"handle": t.unique("annotated"), "netin": []m{{"host_port": 7103, "container_port": 80}}})
		mapped := t.mapped(h, 81)
		rule := to(internet, 1, 80)
		t.must(t.netOut(h, rule))
		text := t.host("nft list ruleset")
		ip := t.info(h, "ContainerIP")
		elements := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(",{}", r) })
		seen := 0
		for _, each := range elements {
			// Counts of flows are the kernel's own elements.
			if strings.Contains(each, ip+" ") && !strings.Contains(each, "ct count") {
				seen++
				t.want(strings.Contains(each, `comment "`+h+`"`), each)
			}
		}
		t.want(seen >= 4, text)
		for _, port := range []int{7103, mapped} {
			t.want(strings.Contains(text, fmt.Sprintf(`. tcp . %d comment "%s"`, port, h)), port, text)
		}
	})
	check("root may overwrite hosts and resolv.conf, others may not", func(t *T) {
		h := t.create(nil)
		for _, file := range []string{"/etc/hosts", "/etc/resolv.conf"} {
			got := t.do(h, "echo alice >"+file, "user", "alice")
			t.want(got.Code == 1 && strings.Contains(got.Err, "Permission denied"), got)
			t.equal(t.say(h, "echo '"+internet+" mine' >"+file+"; cat "+file), internet+" mine")
		}
		t.want(t.pings(h, "mine"))
	})
	check("localhost and the handle are found and answer", func(t *T) {
		h := t.create(nil)
		t.want(t.pings(h, "localhost"))
		t.want(t.pings(h, h))
		t.listen(h, port)
		t.want(strings.HasPrefix(t.ask(h, "tcp", "127.0.0.1", port), "ok "+h))
	})
	check("names are found, whether an image has hosts and resolv.conf or not", func(t *T) {
		with, without := filepath.Join(t.folder(), "image.tar"), filepath.Join(t.folder(), "image.tar")
		files := []string{"etc/hosts", "etc/resolv.conf"}
		t.must(copyImage(t.image, with, files, entry{name: files[0], mode: 0o644, data: "1.2.3.4 localhost public.example\n"},
			entry{name: files[1], mode: 0o644, data: "nameserver 1.2.3.4\n"}))
		t.must(copyImage(t.image, without, files))
		for _, image := range []string{with, without} {
			h := t.create(m{"image": m{"uri": image}})
			t.want(strings.Contains(t.say(h, "nslookup public.example"), internet2), image)
			t.want(t.pings(h, "public.example"), image)
			t.want(t.pings(h, "localhost"), image)
			t.equal(t.ask(h, "tcp", internet, 80), answered)
		}
	})
	check("neighbours in one subnet come and go, and routing stays", func(t *T) {
		subnet := "10.90.1.0/24"
		stays := t.create(m{"network": subnet})
		t.listen(stays, port)
		ip := t.info(stays, "ContainerIP")
		for range 5 {
			h := t.create(m{"network": subnet})
			t.equal(t.ask(h, "tcp", ip, port), "ok "+stays+" from "+t.info(h, "ContainerIP"))
			t.equal(t.ask(h, "tcp", internet, 80), answered)
			t.destroy(h)
			t.equal(t.ask(stays, "tcp", internet, 80), answered)
		}
		again := t.create(m{"network": "10.90.1.77/24"})
		t.equal(t.ask(again, "tcp", internet, 80), answered)
		t.equal(t.ask(again, "tcp", ip, port), "ok "+stays+" from 10.90.1.77")
	})
	check("a handle can be used again, with the same address and port", func(t *T) {
		h := t.unique("again")
		for range 3 {
			t.create(m{"handle": h, "network": "10.90.2.5/24", "netin": []m{{"host_port": 7104, "container_port": port}}})
			t.listen(h, port)
			t.equal(t.away("tcp", hostIP, 7104), "ok "+h+" from "+neighbour)
			t.equal(t.ask(h, "tcp", internet, 80), answered)
			t.destroy(h)
			t.equal(t.away("tcp", hostIP, 7104), "ECONNREFUSED")
		}
	})
	check("creates at the same time share no subnet", func(t *T) {
		const many = 24
		handles := make([]string, many)
		errs := make([]error, many)
		for n := range handles {
			handles[n] = t.unique("same")
			t.undo = append(t.undo, func() { t.Call("DELETE", "/containers/"+handles[n], nil, nil, nil) })
		}
		together(many, func(n int) {
			errs[n] = t.Call("POST", "/containers", nil, m{"handle": handles[n], "image": m{"uri": t.image}}, nil)
		})
		subnets, addresses := map[string]bool{}, map[string]bool{}
		for n, h := range handles {
			t.must(errs[n])
			subnets[t.property(h, "kawasaki.subnet")] = true
			addresses[t.info(h, "ContainerIP")] = true
		}
		t.equal([]int{len(subnets), len(addresses)}, []int{many, many})
		for _, h := range []string{handles[0], handles[many-1]} {
			t.equal(t.ask(h, "tcp", internet, 80), answered)
		}
	})
	a.check("a create that fails leaves nothing", func(t *T) {
		s := t.server()
		taken := s.create(m{"netin": []m{{"host_port": 7105, "container_port": port}}})
		listed := func() string {
			return s.host(fmt.Sprintf("ls %s/containers %s/layers %s/images", s.run, s.root, s.root)) + s.bridges()
		}
		before, rules := listed(), s.rules()
		for _, each := range []struct {
			spec m
			says string
		}{
			{m{"network": "10.9.0.0/33"}, "invalid CIDR address: 10.9.0.0/33"},
			{m{"network": "not-a-network"}, "invalid CIDR address: not-a-network"},
			{m{"network": "10.91.1.1/24"}, "a container IP must not equal the gateway IP"},
			{m{"network": "10.91.1.255/24"}, "a container IP must not equal the broadcast IP"},
			{m{"network": "10.91.1.5/24", "netin": []m{{"host_port": 7105}}}, "already mapped to another container"},
			{m{"network": "10.91.1.5/24", "netout_rules": []m{{"protocol": 9}}}, "invalid protocol: 9"},
			{m{"network": "10.91.1.5/24", "image": m{"uri": "/does/not/exist.tar"}}, "/does/not/exist.tar"},
			{m{"network": "10.91.1.5/24", "bind_mounts": []m{{"src_path": "/does/not/exist", "dst_path": "/x"}}}, "/does/not/exist"},
		} {
			each.spec["handle"] = "failed"
			begin := time.Now()
			_, err := s.tryCreate(each.spec)
			t.want(says(err, each.says), each.says, err)
			t.want(time.Since(begin) < patience, each.says)
			s.until("nothing is left", func() bool { return listed() == before && slices.Equal(s.rules(), rules) })
		}
		t.equal(s.list(nil), []string{taken})
		h := s.create(m{"handle": "failed", "network": "10.91.1.5/24"})
		t.equal(s.ask(h, "tcp", internet, 80), answered)
	})
	a.check("addresses are those of the pool, in order", func(t *T) {
		s := t.server("--network-pool", "10.92.0.0/28")
		var capacity m
		t.must(s.Call("GET", "/capacity", nil, nil, &capacity))
		t.equal(capacity["max_containers"], 4.0)
		for _, ip := range []string{"10.92.0.2", "10.92.0.6", "10.92.0.10", "10.92.0.14"} {
			h := s.create(nil)
			t.equal(s.info(h, "ContainerIP"), ip)
			inside := s.property(h, "kawasaki.container-interface")
			t.equal(s.say(h, "ls /sys/class/net"), "lo\n"+inside)
			t.want(strings.Contains(s.say(h, "ip addr show lo"), "127.0.0.1/8"))
			s.host("ping -c1 -W2 " + ip)
			t.want(s.pings(h, "10.92.0.2"), ip)
		}
		_, err := s.tryCreate(nil)
		t.want(says(err, "insufficient subnets remaining in the pool"), err)
	})
	a.check("the port that has been free for longest is next, also after a restart", func(t *T) {
		s := t.server("--port-pool-start", "21000", "--port-pool-size", "5")
		first, second := s.create(nil), s.create(nil)
		t.equal([]int{s.mapped(first, 1), s.mapped(second, 2)}, []int{21000, 21001})
		s.destroy(first)
		t.equal(s.mapped(second, 3), 21002)
		for n, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			s.restart(signal)
			t.equal(s.mapped(second, 4+n), 21003+n)
		}
		t.equal(s.mapped(second, 6), 21000)
		_, _, err := s.netIn(second, 0, 7)
		t.want(says(err, "port pool is exhausted"), err)
	})
	a.check("denied networks, and the holes of rules", func(t *T) {
		s := t.server("--deny-network", internet+"/32", "--deny-network", "9.9.9.0/24", "--nflog-group", "77")
		h, other := s.create(m{"netout_rules": []m{to(internet, 1, 443)}}), s.create(nil)
		denied := func(h, address string) {
			t.equal(s.ask(h, "tcp", address, 80), refused)
			t.equal(s.ask(h, "udp", address, 80), refused)
			t.want(!s.pings(h, address), address)
		}
		for _, address := range []string{internet, internet2} {
			denied(h, address)
			denied(other, address)
		}
		t.equal(s.ask(other, "tcp", neighbour, 80), answered)
		t.equal(s.ask(h, "tcp", internet, 443), answered)
		t.must(s.netOut(h, to(internet, 1, 80)))
		t.equal(s.ask(h, "tcp", internet, 80), answered)
		t.equal(s.ask(h, "udp", internet, 80), refused)
		t.must(s.bulkNetOut(h, to(internet, 2, 80), m{"protocol": 3, "icmps": m{"type": 8}}))
		t.equal(s.ask(h, "udp", internet, 80), answered)
		t.want(s.pings(h, internet) && s.pings(h, internet2))
		t.equal(s.ask(h, "tcp", internet2, 80), refused)
		// With a log: it passes all the same, and is told.
		log := s.follow("log", "77")
		s.until("somebody listens to the log", func() bool { return log.Has("ready") })
		logged := to(internet2, 1, 0)
		logged["log"] = true
		t.must(s.bulkNetOut(h, logged))
		t.equal(s.ask(h, "tcp", internet2, 443), answered)
		s.until("it is logged", func() bool { return log.Has(h[:min(len(h), 28)] + " ") })
		denied(other, internet)
		denied(other, internet2)
	})
	a.check("rules of which one is refused: none is there", func(t *T) {
		s := t.server("--deny-network", "0.0.0.0/0")
		h := s.create(nil)
		for _, each := range []struct {
			rule m
			says string
		}{
			{m{"protocol": 0, "ports": []m{{"start": 1, "end": 2}}}, "Ports cannot be specified for Protocol ALL"},
			{m{"protocol": 3, "ports": []m{{"start": 1, "end": 2}}}, "Ports cannot be specified for Protocol ICMP"},
			{m{"protocol": 7}, "invalid protocol: 7"},
		} {
			before := s.rules()
			err := s.netOut(h, each.rule)
			t.want(isType(err, "") && says(err, each.says), err)
			err = s.bulkNetOut(h, to(internet, 1, 80), each.rule)
			t.want(isType(err, "") && says(err, each.says), err)
			t.equal(s.rules(), before)
		}
		t.equal(s.ask(h, "tcp", internet, 80), refused)
		t.must(s.bulkNetOut(h))
		t.equal(s.ask(h, "tcp", internet, 80), refused)
	})
	a.check("without host access the host is closed, with it open", func(t *T) {
		s := t.server()
		h := s.create(nil)
		listens := s.follow("serve", "host", "7120")
		s.until("the host listens", func() bool { return listens.Has("ready") })
		for _, address := range []string{hostIP, s.info(h, "HostIP")} {
			t.equal(s.ask(h, "tcp", address, 7120), refused)
		}
		s.restart(syscall.SIGTERM, "--allow-host-access")
		for _, address := range []string{hostIP, s.info(h, "HostIP")} {
			t.equal(s.ask(h, "tcp", address, 7120), "ok host from "+s.info(h, "ContainerIP"))
		}
	})
	a.check("the MTU is the flag's, the uplink's, and at most 1500", func(t *T) {
		uplink := t.host("ip -o route get " + neighbour + " | sed 's/.* dev \\([^ ]*\\).*/\\1/'")
		mtu := func(link string) string {
			shown := fields(t.host("ip -o link show dev " + link))[0]
			return shown[slices.Index(shown, "mtu")+1]
		}
		was := mtu(uplink)
		t.undo = append(t.undo, func() { t.host("ip link set " + uplink + " mtu " + was) })
		s := t.prepare()
		pools := s.flags
		for _, each := range []struct {
			uplink string
			flags  []string
			want   string
		}{
			{was, nil, "1500"}, {"1450", nil, "1450"}, {"1450", []string{"--mtu", "1300"}, "1300"},
			{"9000", nil, "1500"}, {was, []string{"--mtu", "9000"}, "1500"},
		} {
			t.host("ip link set " + uplink + " mtu " + each.uplink)
			s.flags = append(slices.Clone(each.flags), pools...)
			s.up()
			h := s.create(nil)
			inside := s.property(h, "kawasaki.container-interface")
			t.equal(s.say(h, "cat /sys/class/net/"+inside+"/mtu"), each.want)
			for _, link := range []string{"kawasaki.host-interface", "kawasaki.bridge-interface"} {
				t.equal(mtu(s.property(h, link)), each.want)
			}
			t.equal(s.property(h, "kawasaki.mtu"), each.want)
			s.destroy(h)
			t.must(s.end(syscall.SIGTERM))
		}
		s.up()
	})
	a.check("a server whose firewall program is none does not start", func(t *T) {
		dir := t.folder()
		nft, err := os.ReadFile("/bin/false")
		t.must(err)
		for name, text := range map[string]string{"garbage": "this is no program", "empty": "", "other": string(nft),
			"silent": "#!/bin/sh\ncat >/dev/null\n"} {
			fake := filepath.Join(dir, name)
			t.must(os.WriteFile(fake, []byte(text), 0o755))
			s := t.prepare()
			s.mounts = []string{fake, t.host("readlink -f $(command -v nft)")}
			why := s.tryUp()
			t.want(strings.Contains(why, "nft") || strings.Contains(why, "firewall"), name, why)
			s.mounts = nil
			s.up()
			t.equal(s.ask(s.create(nil), "tcp", internet, 80), answered)
		}
	})
}
