package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Server is a server that a check starts itself, in the client's network namespace, because the check needs settings
// of its own or ends the server. The fields and methods of T are those for this server.
type Server struct {
	*T
	run, root, prefix string
	// The group of the instance's links.
	group string
	// What is mounted over files of the host for the server alone: pairs of a source and a target.
	mounts  []string
	flags   []string
	command *exec.Cmd
	ended   chan error
}

// starter runs functions in one thread that never ends: the kernel kills a process with such a wish (PR_SET_PDEATHSIG)
// when the thread that has started it ends.
var starter = sync.OnceValue(func() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for each := range work {
			each()
		}
	}()
	return work
})

// server makes one with these flags of `wardian serve`, and starts it. It ends with the check.
func (t *T) server(flags ...string) *Server {
	s := t.prepare(flags...)
	s.up()
	return s
}

// prepare makes a server that has not been started. Servers share the host: each has addresses and ports of its own.
func (t *T) prepare(flags ...string) *Server {
	number := t.servers.Add(1)
	base := filepath.Join(t.dir, fmt.Sprintf("server-%d", number))
	t.must(os.Mkdir(base, 0o755))
	run, err := os.MkdirTemp("/dev/shm", "garden-client-")
	t.must(err)
	suite := &Suite{Client: NewClient("unix", filepath.Join(run, "garden.sock")), dir: base, image: t.image,
		serve: t.serve, outside: t.outside, probe: t.probe}
	s := &Server{T: &T{Suite: suite}, run: run, root: filepath.Join(base, "root"),
		prefix: fmt.Sprintf("10.%d", 100+number%100)}
	given := func(flag string) bool { return slices.Contains(flags, flag) }
	s.flags = flags
	if !given("--network-pool") {
		s.flags = append(s.flags, "--network-pool", s.prefix+".252.0/22")
	}
	if !given("--port-pool-start") {
		s.flags = append(s.flags, "--port-pool-start", fmt.Sprint(20000+100*(number%100)), "--port-pool-size", "100")
	}
	// What the check has made of it goes first.
	t.undo = append(t.undo, func() { s.remove(t) })
	return s
}

// up runs it and waits until it answers.
func (s *Server) up() {
	if why := s.tryUp(); why != "" {
		s.fail("the server has ended: %s", why)
	}
}

// tryUp returns the server's log if it ends instead of answering.
func (s *Server) tryUp() string {
	args := append([]string{s.serve, "serve", "--root", s.root, "--run", s.run, "--listen",
		"unix:" + filepath.Join(s.run, "garden.sock"), "--default-rootfs", s.image, "--network", "bridge"}, s.flags...)
	if slices.Contains(s.flags, "--network") || slices.Contains(s.flags, "--network-plugin") {
		args = slices.DeleteFunc(args, func(each string) bool { return each == "bridge" })
		args = slices.Delete(args, slices.Index(args, "--network"), slices.Index(args, "--network")+1)
	}
	if len(s.mounts) > 0 {
		script := ""
		for n := 0; n < len(s.mounts); n += 2 {
			script += fmt.Sprintf("mount --bind %s %s && ", s.mounts[n], s.mounts[n+1])
		}
		args = append([]string{"unshare", "-m", "sh", "-c", script + `exec "$@"`, "sh"}, args...)
	}
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	s.must(err)
	defer log.Close()
	s.command = exec.Command(args[0], args[1:]...)
	s.command.Stderr = log
	s.begin(s.command)
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.command.Wait() }()
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if s.Call("GET", "/ping", nil, nil, nil) == nil {
			if text := s.host("nft list tables"); strings.Contains(text, s.tag()) {
				chain := s.host("nft list chain inet wardian-" + s.tag() + " forward")
				_, group, _ := strings.Cut(chain, "iifgroup ")
				s.group, _, _ = strings.Cut(group, " ")
			}
			return ""
		}
		select {
		case err := <-s.ended:
			s.command = nil
			return fmt.Sprintf("%v\n%s", err, s.log())
		default:
		}
		if time.Since(begin) > 4*patience {
			s.fail("the server does not answer:\n%s", s.log())
		}
	}
}

// begin starts a program that does not outlive the client.
func (t *T) begin(command *exec.Cmd) {
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	starter() <- func() { started <- command.Start() }
	t.must(<-started)
}

func (s *Server) logFile() string { return filepath.Join(s.dir, "log") }

// log is what it has logged.
func (s *Server) log() string {
	text, _ := os.ReadFile(s.logFile())
	return string(text)
}

// end sends a signal and waits for the server's end; how it ended.
func (s *Server) end(signal syscall.Signal) error {
	s.must(s.command.Process.Signal(signal))
	select {
	case err := <-s.ended:
		s.command = nil
		return err
	case <-time.After(2 * patience):
		s.fail("the server does not end:\n%s", s.log())
		return nil
	}
}

// restart ends it, in good order or not, and starts it with other flags, beside those of its pools.
func (s *Server) restart(signal syscall.Signal, flags ...string) {
	pools := s.flags[slices.IndexFunc(s.flags, func(each string) bool {
		return each == "--network-pool" || each == "--port-pool-start"
	}):]
	s.flags = append(slices.Clone(flags), pools...)
	s.again(signal)
}

// again ends it and starts it as it was.
func (s *Server) again(signal syscall.Signal) {
	err := s.end(signal)
	s.want(signal == syscall.SIGKILL || err == nil, err)
	s.up()
}

// tag is the instance's: it is in the names of its tables.
func (s *Server) tag() string {
	text, err := os.ReadFile(filepath.Join(s.run, "instance.json"))
	s.must(err)
	var record struct{ Tag string }
	s.must(json.Unmarshal(text, &record))
	return record.Tag
}

// remove ends it and looks whether anything is left: an error of the check `t` that had it.
func (s *Server) remove(t *T) {
	why := s.clean()
	// By force, where it has not gone by itself.
	if s.command != nil {
		s.command.Process.Kill()
		<-s.ended
	}
	reset := exec.Command(s.serve, "reset", "--root", s.root, "--run", s.run, "--yes")
	if said, err := reset.CombinedOutput(); err != nil && why == nil {
		why = fmt.Errorf("reset: %v: %s", err, said)
	}
	os.RemoveAll(s.run)
	if why != nil {
		t.late = errors.Join(t.late, why)
	}
}

// clean destroys all containers and ends the server; both must work, and nothing of its network may be left.
func (s *Server) clean() (why error) {
	defer func() {
		if e := recover(); e != nil {
			why = fmt.Errorf("at the end of the server: %v", e)
		}
	}()
	if s.command == nil {
		return nil
	}
	s.T.clean()
	for _, handle := range s.list(nil) {
		s.must(s.Call("DELETE", "/containers/"+handle, nil, nil, nil))
	}
	tag := s.tag()
	s.must(s.end(syscall.SIGTERM))
	s.until("its links and tables are gone", func() bool {
		if strings.Contains(s.host("nft list tables"), tag) {
			return false
		}
		return s.group == "" || s.host("ip -o link show group "+s.group) == ""
	})
	return nil
}

// host runs a script in the client's network namespace; what it says. It must succeed.
func (t *T) host(script string) string {
	said, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.fail("%s: %v\n%s (%s)", script, err, said, caller())
	}
	return strings.TrimRight(string(said), "\n")
}

// bridges are those of the server's instance. Those of the pool, which are made ahead, are left out.
func (s *Server) bridges() string {
	return s.host(fmt.Sprintf("ip -o link show group %s type bridge | cut -d: -f2 | grep -v ' wbrdg-%s' || true", s.group, s.ahead()))
}

// ahead is how the names of bridges of the default pool begin.
func (s *Server) ahead() string {
	var octets [2]byte
	fmt.Sscanf(s.prefix, "%d.%d", &octets[0], &octets[1])
	return fmt.Sprintf("%02x%02xf", octets[0], octets[1])
}

// follow runs the probe on the host until the check ends; what it says.
func (s *Server) follow(args ...string) *Output {
	output := &Output{}
	command := exec.Command(s.probe, args...)
	command.Stdout = output
	s.begin(command)
	s.undo = append(s.undo, func() {
		command.Process.Kill()
		command.Wait()
	})
	return output
}

// rules are the server's tables, in one order and without counts of flows, which the kernel forgets by itself.
func (s *Server) rules() []string {
	text := s.host("for each in inet bridge; do nft -s list table $each wardian-" + s.tag() + "; done")
	words := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune("\n,{}", r) })
	for n := range words {
		words[n] = strings.TrimSpace(words[n])
	}
	words = slices.DeleteFunc(words, func(word string) bool {
		return word == "" || word == "elements =" || strings.Contains(word, "ct count over")
	})
	slices.Sort(words)
	return words
}
