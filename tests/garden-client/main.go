// Drives a Garden server through Go's HTTP stack: garden-client unix|tcp ADDRESS ROOTFS.
// Prints "ok <name>" per check and ends with status 1 at the first that fails.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

func check(name string, err error) {
	if err != nil {
		fmt.Printf("FAILED %s: %v\n", name, err)
		os.Exit(1)
	}
}

func ok(name string, holds bool, seen ...any) {
	if !holds {
		check(name, errors.New("got "+fmt.Sprintf("%+v ", seen)))
	}
	fmt.Println("ok", name)
}

func isType(err error, kind string) bool {
	var e *Error
	return errors.As(err, &e) && e.Type == kind
}

func pack(name string, content []byte) *bytes.Buffer {
	b := &bytes.Buffer{}
	w := tar.NewWriter(b)
	check("tar", w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}))
	_, err := w.Write(content)
	check("tar", err)
	check("tar", w.Close())
	return b
}

func unpack(stream io.Reader, name string) []byte {
	r := tar.NewReader(stream)
	for {
		header, err := r.Next()
		check("tar of "+name, err)
		if strings.HasSuffix(header.Name, name) {
			content, err := io.ReadAll(r)
			check("tar", err)
			return content
		}
	}
}

func main() {
	if len(os.Args) != 4 {
		fmt.Println("usage: garden-client unix|tcp ADDRESS ROOTFS")
		os.Exit(2)
	}
	time.AfterFunc(2*time.Minute, func() { check("all", errors.New("took more than two minutes")) })
	c, rootfs := NewClient(os.Args[1], os.Args[2]), os.Args[3]
	handle := fmt.Sprintf("go-client-%d", os.Getpid())
	path := "/containers/" + handle
	sh := func(script string) m { return m{"path": "/bin/sh", "args": []string{"-c", script}} }

	check("ping", c.Call("GET", "/ping", nil, nil, nil))
	ok("ping", true)

	var capacity struct {
		Memory uint64 `json:"memory_in_bytes"`
	}
	check("capacity", c.Call("GET", "/capacity", nil, nil, &capacity))
	ok("capacity", capacity.Memory > 0, capacity)

	var created struct{ Handle string }
	check("create", c.Call("POST", "/containers", nil, m{
		"handle": handle, "image": m{"uri": rootfs}, "properties": m{"owner": handle, "odd": "<&>\u2028é"},
		"limits": m{"bandwidth_limits": m{}, "cpu_limits": m{}, "disk_limits": m{}, "memory_limits": m{}, "pid_limits": m{}},
	}, &created))
	ok("create", created.Handle == handle, created)

	var list struct{ Handles []string }
	check("list", c.Call("GET", "/containers", url.Values{"owner": {handle}}, nil, &list))
	ok("list by property", slices.Equal(list.Handles, []string{handle}), list)
	check("list", c.Call("GET", "/containers", url.Values{"owner": {"nobody"}}, nil, &list))
	ok("list without a match", list.Handles != nil && len(list.Handles) == 0, list)

	check("set property", c.Call("PUT", path+"/properties/k", nil, m{"value": "v"}, nil))
	var properties map[string]string
	check("properties", c.Call("GET", path+"/properties", nil, nil, &properties))
	ok("properties", properties["k"] == "v" && properties["odd"] == "<&>\u2028é", properties)

	p, err := c.Run(handle, sh("echo out; echo err >&2; exit 42"))
	check("run", err)
	status, err := p.Wait()
	check("run", err)
	ok("run", status == 42 && p.Stdout.String() == "out\n" && p.Stderr.String() == "err\n", status, p.Stdout, p.Stderr)

	p, err = c.Run(handle, m{"path": "cat"})
	check("stdin", err)
	p.Write("first\n")
	p.Write("second é\n")
	p.CloseStdin()
	status, err = p.Wait()
	check("stdin", err)
	ok("stdin", status == 0 && p.Stdout.String() == "first\nsecond é\n", status, p.Stdout)

	p, err = c.Run(handle, sh("read line; echo got $line; exit 7"))
	check("attach", err)
	other, err := c.Attach(handle, p.ID)
	check("attach", err)
	other.Write("hello\n")
	for _, each := range []*Process{p, other} {
		status, err = each.Wait()
		check("attach", err)
		ok("attach", status == 7 && each.Stdout.String() == "got hello\n", status, each.Stdout)
	}
	_, err = c.Attach(handle, "no-such-process")
	ok("attach to an unknown process", isType(err, "ProcessNotFoundError"), err)

	for n, code := range []int{143, 137} {
		p, err = c.Run(handle, m{"path": "sleep", "args": []string{"1000"}})
		check("signal", err)
		p.Signal(n)
		status, err = p.Wait()
		check("signal", err)
		ok(fmt.Sprintf("signal %d", n), status == code, status)
	}

	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	archive := pack("data", content)
	check("stream in", c.StreamIn(handle, "root", "/srv/in", bytes.NewReader(archive.Bytes())))
	check("stream in", c.StreamIn(handle, "root", "/srv/chunked", io.MultiReader(archive)))
	ok("stream in", true)
	for _, source := range []string{"/srv/in/data", "/srv/chunked/"} {
		out, err := c.StreamOut(handle, "root", source)
		check("stream out", err)
		got := unpack(out, "data")
		check("stream out", out.Close())
		ok("stream out "+source, sha256.Sum256(got) == sha256.Sum256(content), len(got))
	}

	_, err = c.Run(handle, m{"path": "no-such-program"})
	ok("missing executable", isType(err, "ExecutableNotFoundError"), err)
	err = c.Call("GET", "/containers/no-such-handle/info", nil, nil, nil)
	ok("unknown handle", isType(err, "ContainerNotFoundError"), err)

	pea := sh("echo pea; exit 4")
	pea["image"] = m{"uri": rootfs}
	p, err = c.Run(handle, pea)
	check("pea", err)
	status, err = p.Wait()
	check("pea", err)
	ok("pea", status == 4 && p.Stdout.String() == "pea\n", status, p.Stdout)

	check("stop", c.Call("PUT", path+"/stop", nil, m{"kill": true}, nil))
	ok("stop", true)
	check("destroy", c.Call("DELETE", path, nil, nil, nil))
	ok("destroy", true)
	err = c.Call("DELETE", path, nil, nil, nil)
	ok("destroy again", isType(err, "ContainerNotFoundError"), err)
}
