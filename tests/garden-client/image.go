package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Users and groups that the checks know. Root has groups of its own.
const (
	passwd = `root:x:0:0:root:/root:/bin/sh
operator:x:37:37:Operator:/var:/bin/false
testuser:x:1000:1000::/home/testuser:/bin/sh
alice:x:1001:1010:Linux User,,,:/home/alice:/bin/sh
bob:x:1002:1002:bob:/home/bob:/bin/sh
large:x:1000000000:1000000000:large:/home/large:/bin/sh
vcap:x:2000:2000:vcap:/home/vcap:/bin/sh
nobody:x:65534:65534:nobody:/home:/bin/false
`
	group = `root:x:0:root
wheel:x:10:root
tty:x:5:
operator:x:37:
staff:x:50:
users:x:100:
testuser:x:1000:
bob:x:1002:
alice:x:1010:alice
alicesgroup:x:1011:alice
large:x:1000000000:
vcap:x:2000:
nogroup:x:65534:
`
)

type entry struct {
	name     string
	mode     int64
	uid, gid int
	data     string
	link     string
	xattr    string
}

// tarOf packs files, directories (names that end with a slash) and symlinks.
func tarOf(entries ...entry) []byte {
	b := &bytes.Buffer{}
	w := tar.NewWriter(b)
	if err := errors.Join(pack(w, entries), w.Close()); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func pack(w *tar.Writer, entries []entry) error {
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.gid, Size: int64(len(e.data))}
		switch {
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		default:
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if e.xattr != "" {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": e.xattr}
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write([]byte(e.data)); err != nil {
			return err
		}
	}
	return nil
}

// makeImage copies a root file system's tar with the users and files of the checks, and with `probe`, if it is given.
func makeImage(from, to, probe string) error {
	busybox, err := fileOf(from, "bin/busybox")
	if err != nil {
		return err
	}
	entries := []entry{
		{name: "etc/passwd", mode: 0o644, data: passwd},
		{name: "etc/group", mode: 0o644, data: group},
		// Root has no password: su makes a user root.
		{name: "etc/shadow", mode: 0o640, data: "root::10933:0:99999:7:::\n"},
		{name: "home/alice/", uid: 1001, gid: 1010},
		{name: "home/alice/alicesfile", uid: 1001, gid: 1010, mode: 0o644, data: "hi\n"},
		{name: "home/bob/", uid: 1002, gid: 1002},
		{name: "home/testuser/", uid: 1000, gid: 1000},
		{name: "home/large/", uid: 1000000000, gid: 1000000000},
		{name: ".foo", mode: 0o644, data: "this is a pre-existing dotfile\n"},
		{name: "bin/su", mode: 0o4755, data: busybox},
		{name: "sbin/only-root-looks-here", data: "#!/bin/sh\necho hello world\n"},
		{name: "bin/own-path/"},
		{name: "bin/own-path/here", data: "#!/bin/sh\necho here\n"},
	}
	if probe != "" {
		program, err := os.ReadFile(probe)
		if err != nil {
			return err
		}
		entries = append(entries, entry{name: "bin/net", data: string(program)})
	}
	return copyImage(from, to, nil, entries...)
}

// copyImage copies a tar without the files that are named, or that are among the entries which it adds.
func copyImage(from, to string, without []string, entries ...entry) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	for _, each := range entries {
		without = append(without, each.name)
	}
	b := &bytes.Buffer{}
	w, r := tar.NewWriter(b), tar.NewReader(source)
	for {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		name := strings.TrimPrefix(header.Name, "./")
		if slices.Contains(without, name) && !strings.HasSuffix(name, "/") {
			continue
		}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
	if err := errors.Join(pack(w, entries), w.Close()); err != nil {
		return err
	}
	return os.WriteFile(to, b.Bytes(), 0o644)
}

// fileOf is a file of a tar; nothing if it is not there.
func fileOf(path, wanted string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if err == io.EOF {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		if strings.TrimPrefix(header.Name, "./") == wanted {
			data, err := io.ReadAll(r)
			return string(data), err
		}
	}
}

// unpack reads a tar whole: names in order, and what is in each.
func unpack(stream io.Reader) (names []string, files map[string]string, headers map[string]*tar.Header, err error) {
	files, headers = map[string]string{}, map[string]*tar.Header{}
	for r := tar.NewReader(stream); ; {
		header, err := r.Next()
		if err == io.EOF {
			return names, files, headers, nil
		}
		if err != nil {
			return names, files, headers, err
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return names, files, headers, err
		}
		names = append(names, header.Name)
		files[header.Name], headers[header.Name] = string(data), header
	}
}
