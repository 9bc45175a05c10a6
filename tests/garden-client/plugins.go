package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Notes how it is called, and does what the files beside it say.
const plugin = `#!/bin/sh
here=$(dirname "$0")
for word; do [ "$last" = --action ] && action=$word; last=$word; done
call=$here/calls/$(ls "$here/calls" | wc -l | xargs printf %03d)-$action
mkdir "$call"
echo "$*" > "$call/args"
cat > "$call/stdin"
[ ! -e "$here/do-$action" ] || . "$here/do-$action"
[ ! -e "$here/say-$action" ] || cat "$here/say-$action"
`

// plugged is a server with a network plugin, and the plugin's folder.
func (t *T) plugged(flags ...string) (*Server, string) {
	dir := t.folder()
	t.must(os.Mkdir(filepath.Join(dir, "calls"), 0o755))
	program := filepath.Join(dir, "plugin")
	t.must(os.WriteFile(program, []byte(plugin), 0o755))
	s := t.prepare(append([]string{"--network-plugin", program}, flags...)...)
	// With a plugin there are no pools.
	s.flags = s.flags[:2+len(flags)]
	s.up()
	return s, dir
}

// call is the newest call of an action: its arguments and its standard input.
func (t *T) call(dir, action string) (args string, input any) {
	calls, err := filepath.Glob(filepath.Join(dir, "calls", "*-"+action))
	t.must(err)
	t.want(len(calls) > 0, action)
	text, err := os.ReadFile(filepath.Join(calls[len(calls)-1], "args"))
	t.must(err)
	raw, err := os.ReadFile(filepath.Join(calls[len(calls)-1], "stdin"))
	t.must(err)
	t.must(json.Unmarshal(raw, &input))
	return strings.TrimSpace(string(text)), input
}

func (t *T) write(dir, name, text string) {
	t.must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
}

// plugins has checks of networks that another program makes.
func plugins(a *Area) {
	if a.serve == "" {
		return
	}
	a.check("arguments, input and what becomes of the output", func(t *T) {
		s, dir := t.plugged("--network-plugin-extra-arg", "--config", "--network-plugin-extra-arg", "a b")
		s.write(dir, "say-up", `{"properties":{"garden.network.container-ip":"10.255.3.2","garden.network.host-ip":"10.255.3.1",
			"garden.network.container-ipv6":"fd00::3:2","garden.network.mapped-ports":"[{\"HostPort\":60001,\"ContainerPort\":80}]",
			"some.property":"kept"},"dns_servers":["9.9.9.9","1.1.1.1"],"search_domains":["apps.internal","x.y"]}`)
		rule := m{"protocol": 1.0, "ports": []any{m{"start": 80.0, "end": 81.0}}}
		h := s.create(m{"handle": "a", "properties": m{"network.app": "x", "log_config": "lc", "other": "z"},
			"netin": []m{{"host_port": 0, "container_port": 80}}, "netout_rules": []m{rule}})
		args, up := s.call(dir, "up")
		t.equal(args, "--config a b --action up --handle a")
		pid, _ := up.(m)["Pid"].(float64)
		inside, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", int(pid)))
		t.must(err)
		t.equal(s.say(h, "readlink /proc/self/ns/net"), inside)
		t.equal(up, m{"Pid": pid, "Properties": m{"app": "x", "log_config": "lc"},
			"netin": []any{m{"host_port": 0.0, "container_port": 80.0}}, "netout_rules": []any{rule}})
		for _, signal := range []syscall.Signal{0, syscall.SIGTERM, syscall.SIGKILL} {
			if signal != 0 {
				s.again(signal)
			}
			info := s.get(h, "info")
			t.equal([]any{info["ContainerIP"], info["ContainerIPv6"], info["HostIP"], info["ExternalIP"]},
				[]any{"10.255.3.2", "fd00::3:2", "10.255.3.1", hostIP})
			t.equal(info["MappedPorts"], []any{m{"HostPort": 60001.0, "ContainerPort": 80.0}})
			t.equal(s.property(h, "some.property"), "kept")
			t.equal(s.say(h, "cat /etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n10.255.3.2 a\nfd00::3:2 a")
			t.equal(s.say(h, "cat /etc/resolv.conf"), "nameserver 9.9.9.9\nnameserver 1.1.1.1\nsearch apps.internal x.y")
		}
		s.write(dir, "say-net-in", `{"host_port":60002,"container_port":8080}`)
		host, container, err := s.netIn(h, 0, 8080)
		t.must(err)
		t.equal([]int{host, container}, []int{60002, 8080})
		_, asked := s.call(dir, "net-in")
		t.equal(asked, m{"HostIP": hostIP, "HostPort": 0.0, "ContainerIP": "10.255.3.2", "ContainerPort": 8080.0})
		t.must(s.netOut(h, rule))
		_, asked = s.call(dir, "net-out")
		t.equal(asked, m{"container_ip": "10.255.3.2", "netout_rule": rule})
		t.must(s.bulkNetOut(h, rule, rule))
		_, asked = s.call(dir, "bulk-net-out")
		t.equal(asked, m{"container_ip": "10.255.3.2", "netout_rules": []any{rule, rule}})
		s.destroy(h)
		args, down := s.call(dir, "down")
		t.want(args == "--config a b --action down --handle a" && down == nil, args, down)
	})
	a.check("one that does nothing, one that fails, one that says what is no JSON", func(t *T) {
		s, dir := t.plugged()
		h := s.create(nil)
		info := s.get(h, "info")
		t.equal([]any{info["ContainerIP"], info["ExternalIP"]}, []any{"", hostIP})
		for _, each := range []struct{ does, says, error string }{
			{"exit 7", "", "external networker encountered an error running 'up' action: exit status 7"},
			{"", `{"a`, "unmarshaling result from external networker: "},
		} {
			s.write(dir, "do-up", each.does)
			s.write(dir, "say-up", each.says)
			_, err := s.tryCreate(m{"handle": "failed"})
			t.want(isType(err, "") && says(err, each.error), err)
			t.equal(s.list(nil), []string{h})
			args, _ := s.call(dir, "down")
			t.equal(args, "--action down --handle failed")
		}
		for action, call := range map[string]func() error{
			"net-in":       func() error { _, _, err := s.netIn(h, 0, 1); return err },
			"net-out":      func() error { return s.netOut(h, m{}) },
			"bulk-net-out": func() error { return s.bulkNetOut(h, m{}) },
		} {
			s.write(dir, "do-"+action, "exit 3")
			err := call()
			t.want(says(err, "external networker encountered an error running '"+action+"' action: exit status 3"), err)
		}
	})
	a.check("a destroy at the start is tried again until the plugin succeeds", func(t *T) {
		s, dir := t.plugged()
		h := s.create(nil)
		s.write(dir, "do-down", "exit 1")
		err := s.Call("DELETE", "/containers/"+h, nil, nil, nil)
		t.want(says(err, "external networker encountered an error running 'down' action: exit status 1"), err)
		t.equal(s.list(nil), []string{h})
		s.write(dir, "do-down", "[ $(ls -d $here/calls/*-down | wc -l) -ge 3 ] || exit 1")
		t.must(s.end(syscall.SIGTERM))
		s.flags = append(s.flags, "--destroy-containers-on-startup")
		begin := time.Now()
		s.up()
		s.until("it is gone", func() bool { return len(s.list(nil)) == 0 })
		t.want(time.Since(begin) < patience)
		downs, _ := filepath.Glob(filepath.Join(dir, "calls", "*-down"))
		t.equal(len(downs), 3)
	})
}
