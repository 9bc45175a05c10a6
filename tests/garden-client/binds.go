package main

import (
	"os"
	"path/filepath"
	"strings"
)

func binds(a *Area) {
	mount := func(source, to string, mode int) m { return m{"src_path": source, "dst_path": to, "mode": mode} }
	with := func(t *T, more ...m) string { return t.create(m{"bind_mounts": more}) }
	a.check("files, directories and links are read by all, written by nobody", func(t *T) {
		dir := t.folder()
		file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
		t.must(os.WriteFile(file, []byte("hello\n"), 0o644))
		t.must(os.Symlink(file, link))
		h := with(t, mount(dir, "/made/dir", 0), mount(file, "/made/file", 0), mount(link, "/made/link", 0))
		for _, user := range []string{"root", "alice"} {
			t.equal(t.say(h, "cat /made/dir/file /made/file /made/link", "user", user), "hello\nhello\nhello")
			for _, denied := range []string{"echo x >/made/file", "echo x >/made/dir/file", "echo x >/made/link", "touch /made/dir/new"} {
				t.want(t.do(h, denied, "user", user).Code != 0, user, denied)
			}
		}
		options := fields(t.say(h, "grep ' /made/dir ' /proc/mounts"))[0][3]
		t.want(strings.HasPrefix(options, "ro,"), options)
	})
	a.check("a file that may be written is written", func(t *T) {
		file := filepath.Join(t.folder(), "file")
		t.must(os.WriteFile(file, nil, 0o666))
		t.must(os.Chmod(file, 0o666))
		h := with(t, mount(file, "/file", 1))
		t.say(h, "echo hello >/file", "user", "alice")
		got, err := os.ReadFile(file)
		t.must(err)
		t.equal(string(got), "hello\n")
	})
	a.check("options of the source's file system are kept", func(t *T) {
		source, err := os.MkdirTemp("/dev/shm", "garden-client-")
		t.must(err)
		t.undo = append(t.undo, func() { os.RemoveAll(source) })
		host, err := os.ReadFile("/proc/mounts")
		t.must(err)
		its := ""
		for _, line := range fields(string(host)) {
			if line[1] == "/dev/shm" {
				its = line[3]
			}
		}
		got := fields(t.say(with(t, mount(source, "/bound", 1)), "grep ' /bound ' /proc/mounts"))[0][3]
		for _, option := range []string{"nosuid", "nodev", "noexec"} {
			t.want(!hasOption(its, option) || hasOption(got, option), option, its, got)
		}
	})
	a.check("a privileged root writes a host's directory, others do not", func(t *T) {
		dir := t.folder()
		h := t.create(m{"privileged": true, "bind_mounts": []m{mount(dir, "/bound", 1)}})
		t.say(h, "touch /bound/by-root")
		t.want(t.do(h, "touch /bound/by-alice", "user", "alice").Code != 0)
		h = with(t, mount(dir, "/bound", 1))
		for _, user := range []string{"root", "alice"} {
			t.want(t.do(h, "touch /bound/by-"+user+"-inside", "user", user).Code != 0, user)
		}
		names, err := readNames(dir)
		t.must(err)
		t.equal(names, []string{"by-root"})
	})
	a.check("a mount within a mount", func(t *T) {
		outer, inner := t.folder(), t.folder()
		t.must(os.Mkdir(filepath.Join(outer, "nested"), 0o755))
		t.must(os.WriteFile(filepath.Join(outer, "outer"), nil, 0o644))
		t.must(os.WriteFile(filepath.Join(inner, "inner"), nil, 0o644))
		h := with(t, mount(outer, "/bound", 0), mount(inner, "/bound/nested", 0))
		t.equal(t.say(h, "ls /bound /bound/nested"), "/bound:\nnested\nouter\n\n/bound/nested:\ninner")
	})
	a.check("a source that is not there fails the create", func(t *T) {
		_, err := t.tryCreate(m{"bind_mounts": []m{mount("/does/not/exist", "/bound", 0)}})
		t.want(isType(err, ""), err)
	})
	a.check("localhost and the handle have addresses that answer", func(t *T) {
		h := t.create(nil)
		for _, name := range []string{"localhost", h} {
			t.say(h, "ping -c1 -W5 $(awk -v name="+name+" '$2 == name && $1 !~ /:/ {print $1}' /etc/hosts)")
		}
	})
	a.check("hosts and resolv.conf are the container's to write", func(t *T) {
		h := t.create(nil)
		for _, file := range []string{"/etc/hosts", "/etc/resolv.conf"} {
			t.say(h, "echo NEW >"+file)
			t.equal(t.say(h, "cat "+file), "NEW")
			got := t.do(h, "echo alice >"+file, "user", "alice")
			//
			t.want(got.Code == 1 && strings.Contains(got.Err, "Permission denied"), got)
		}
	})
}

func hasOption(options, option string) bool {
	for _, each := range strings.Split(options, ",") {
		if each == option {
			return true
		}
	}
	return false
}
