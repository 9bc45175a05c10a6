package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// restarts has checks of networks and the server's end.
func restarts(a *Area) {
	if a.serve == "" {
		return
	}
	ends := map[string]syscall.Signal{"in good order": syscall.SIGTERM, "by a kill": syscall.SIGKILL}
	deny := []string{"--deny-network", internet + "/32", "--deny-network", internet2 + "/32"}
	for _, how := range []string{"in good order", "by a kill"} {
		a.check("the server ends "+how+": everything goes on", func(t *T) {
			s := t.server(deny...)
			rules := []m{to(internet, 1, 80), {"protocol": 3, "icmps": m{"type": 8, "code": 0}}, {"protocol": 3, "icmps": m{"type": 255}}}
			dynamic := s.create(m{"netin": []m{{"container_port": port}}, "netout_rules": rules, "properties": m{"kept": "<&>"}})
			subnet := s.prefix + ".1"
			static := s.create(m{"network": subnet + ".5/24", "netin": []m{{"host_port": 7200 + len(how), "container_port": port}}})
			t.must(s.bulkNetOut(static, rules...))
			both := []string{dynamic, static}
			processes, infos := map[string]*Process{}, map[string]m{}
			for _, h := range both {
				processes[h] = s.listen(h, port)
				infos[h] = s.get(h, "info")
			}
			works := func(flags string, second string) {
				for _, h := range both {
					t.equal(s.get(h, "info"), infos[h])
					t.equal(s.property(dynamic, "kept"), "<&>")
					t.equal(s.ask(h, "tcp", internet, 80), answered)
					t.equal(s.ask(h, "tcp", internet2, 80), second)
					t.equal(s.ask(h, "udp", internet2, 80), second)
					t.want(s.pings(h, internet), h, flags)
					for _, each := range infos[h]["MappedPorts"].([]any) {
						t.equal(s.away("tcp", hostIP, int(each.(m)["HostPort"].(float64))), "ok "+h+" from "+neighbour)
					}
					_, err := os.Stat(s.info(h, "ContainerPath"))
					t.must(err)
				}
				// Nothing that they have is given to others.
				_, err := s.tryCreate(m{"network": subnet + ".5/24"})
				t.want(says(err, "the requested IP is already allocated"), err)
				other := s.create(m{"netin": []m{{"container_port": port}}})
				t.want(s.info(other, "ContainerIP") != s.info(dynamic, "ContainerIP"))
				taken := s.get(other, "info")["MappedPorts"].([]any)[0].(m)["HostPort"]
				t.want(taken != infos[dynamic]["MappedPorts"].([]any)[0].(m)["HostPort"], taken)
				s.destroy(other)
			}
			works("before", refused)
			s.restart(ends[how], deny...)
			works("after", refused)
			for _, h := range both {
				p, err := s.Attach(h, processes[h].ID)
				t.must(err)
				t.must(p.Signal(1))
				code, err := p.Wait()
				t.must(err)
				t.equal(code, 137)
				s.listen(h, port)
			}
			s.restart(ends[how])
			works("opened", answered)
			for _, h := range both {
				s.destroy(h)
			}
			t.equal(s.list(nil), []string{})
			s.create(m{"handle": static, "network": subnet + ".5/24", "netin": []m{{"host_port": 7200 + len(how), "container_port": port}}})
			s.listen(static, port)
			t.equal(s.away("tcp", hostIP, 7200+len(how)), "ok "+static+" from "+neighbour)
		})
		a.check("the server ends "+how+": the next one destroys all, if it is to", func(t *T) {
			s := t.server()
			specs := []m{{"handle": "dynamic", "netin": []m{{"host_port": 7300 + len(how), "container_port": port}}},
				{"handle": "static", "network": s.prefix + ".1.5/24", "netout_rules": []m{to(internet, 1, 80)}}}
			// Each process is known by its duration.
			seconds := fmt.Sprint(54321000 + os.Getpid()%1000 + len(how))
			for _, spec := range specs {
				h := s.create(spec)
				s.start(h, sh("exec sleep "+seconds))
				s.start(h, sh("exec sleep "+seconds, "image", m{"uri": s.image}))
			}
			s.until("they run, two of them in peas", func() bool { return len(sleepers(seconds)) == 4 })
			// A process's directory that has nothing in it.
			depot := s.info("dynamic", "ContainerPath")
			t.must(os.MkdirAll(filepath.Join(depot, "peas", "nothing-in-it"), 0o700))
			s.restart(ends[how], "--destroy-containers-on-startup")
			s.until("all are gone", func() bool {
				return len(s.list(nil)) == 0 && len(sleepers(seconds)) == 0 && s.bridges() == ""
			})
			rules := strings.Join(s.rules(), "\n")
			for _, trace := range []string{s.prefix + ".1.5", `"static"`, `"dynamic"`} {
				t.want(!strings.Contains(rules, trace), trace, rules)
			}
			_, err := os.Stat(depot)
			t.want(os.IsNotExist(err), depot, err)
			for _, spec := range specs {
				h := s.create(spec)
				t.equal(s.ask(h, "tcp", internet, 80), answered)
			}
			s.listen("dynamic", port)
			t.equal(s.away("tcp", hostIP, 7300+len(how)), "ok dynamic from "+neighbour)
		})
	}
}

// sleepers are the processes of the host that sleep for so many seconds.
func sleepers(seconds string) []string {
	found, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	return slices.DeleteFunc(found, func(path string) bool {
		text, _ := os.ReadFile(path)
		return !strings.HasSuffix(string(text), "sleep\x00"+seconds+"\x00")
	})
}
