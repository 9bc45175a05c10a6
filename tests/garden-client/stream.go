package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
)

// CAP_NET_RAW, permitted and effective, as a file's attribute has it.
const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func stream(a *Area) {
	small := tarOf(entry{name: "some-temp-dir/"}, entry{name: "some-temp-dir/some-temp-file", mode: 0o644, data: "streamed\n"})
	in := func(t *T, h, user, to string) error { return t.StreamIn(h, user, to, bytes.NewReader(small)) }
	out := func(t *T, h, user, from string) ([]string, map[string]string) {
		reader, err := t.StreamOut(h, user, from)
		t.must(err)
		defer reader.Close()
		names, files, _, err := unpack(reader)
		t.must(err)
		return names, files
	}
	for _, kind := range []struct {
		name       string
		privileged bool
	}{{"", false}, {", privileged", true}} {
		make := func(t *T) string { return t.create(m{"privileged": kind.privileged}) }
		a.check("files arrive as their user's"+kind.name, func(t *T) {
			h := make(t)
			t.must(in(t, h, "alice", "/home/alice"))
			got := t.say(h, "cd /home/alice/some-temp-dir; cat some-temp-file; stat -c %U:%G . some-temp-file")
			t.equal(got, "streamed\nalice:alice\nalice:alice")
		})
		a.check("without a user they are root's"+kind.name, func(t *T) {
			h := make(t)
			t.must(in(t, h, "", "/home/alice"))
			t.equal(t.say(h, "stat -c %U:%G /home/alice/some-temp-dir/some-temp-file"), "root:root")
		})
		a.check("the destination may be the root directory"+kind.name, func(t *T) {
			h := make(t)
			t.must(in(t, h, "root", "/"))
			t.equal(t.say(h, "cat /some-temp-dir/some-temp-file"), "streamed")
		})
		a.check("an unknown user is refused"+kind.name, func(t *T) {
			err := in(t, make(t), "batman", "/home/alice")
			t.want(isType(err, "") && says(err, "error streaming in"), err)
		})
		a.check("a user writes only where he may"+kind.name, func(t *T) {
			err := in(t, make(t), "alice", "/home/bob")
			t.want(isType(err, "") && says(err, "Permission denied"), err)
		})
		a.check("a relative destination begins at home"+kind.name, func(t *T) {
			h := make(t)
			t.must(in(t, h, "alice", "."))
			t.must(in(t, h, "alice", "below/it"))
			t.say(h, "test -f /home/alice/some-temp-dir/some-temp-file -a -f /home/alice/below/it/some-temp-dir/some-temp-file")
		})
		a.check("a directory comes out with its name"+kind.name, func(t *T) {
			h := make(t)
			t.must(in(t, h, "alice", "."))
			names, files := out(t, h, "alice", "/home/alice/some-temp-dir")
			t.equal(names, []string{"some-temp-dir/", "some-temp-dir/some-temp-file"})
			t.equal(files["some-temp-dir/some-temp-file"], "streamed\n")
		})
		a.check("a directory comes out without a user"+kind.name, func(t *T) {
			h := make(t)
			t.must(in(t, h, "alice", "."))
			names, _ := out(t, h, "", "/home/alice/some-temp-dir")
			t.equal(names, []string{"some-temp-dir/", "some-temp-dir/some-temp-file"})
		})
		a.check("a slash at the end means what is in it"+kind.name, func(t *T) {
			h := make(t)
			t.must(in(t, h, "alice", "."))
			for _, from := range []string{"/home/alice/some-temp-dir/", "some-temp-dir/"} {
				names, files := out(t, h, "alice", from)
				t.equal(names, []string{"./", "./some-temp-file"})
				t.equal(files["./some-temp-file"], "streamed\n")
			}
		})
		a.check("a file's capabilities survive"+kind.name, func(t *T) {
			h := make(t)
			t.must(t.StreamIn(h, "", "/", bytes.NewReader(tarOf(entry{name: "able", data: "x", xattr: netRaw}))))
			reader, err := t.StreamOut(h, "", "/able")
			t.must(err)
			defer reader.Close()
			_, _, headers, err := unpack(reader)
			t.must(err)
			got := headers["able"].PAXRecords["SCHILY.xattr.security.capability"]
			t.want(got == netRaw, fmt.Sprintf("%q", got), headers["able"].PAXRecords)
		})
	}
	a.check("a tar that is cut is an error", func(t *T) {
		whole := tarOf(entry{name: "big", data: string(spill(100000))})
		for _, body := range []io.Reader{bytes.NewReader(whole[:50000]), io.MultiReader(bytes.NewReader(whole[:50000]))} {
			err := t.StreamIn(t.create(nil), "alice", "/home/alice", body)
			t.want(isType(err, "") && says(err, "error streaming in"), err)
		}
	})
	a.check("what has a length and what has none arrive alike", func(t *T) {
		h := t.create(nil)
		data := string(spill(3 << 20))
		whole := tarOf(entry{name: "big", data: data})
		t.must(t.StreamIn(h, "", "/sized", bytes.NewReader(whole)))
		t.must(t.StreamIn(h, "", "/chunked", io.MultiReader(bytes.NewReader(whole))))
		for _, from := range []string{"/sized/big", "/chunked/big"} {
			names, files := out(t, h, "", from)
			t.want(slices.Equal(names, []string{"big"}) && files["big"] == data, names, len(files["big"]))
		}
	})
	a.check("a stopped container still streams", func(t *T) {
		h := t.create(nil)
		t.must(t.Call("PUT", "/containers/"+h+"/stop", nil, m{"kill": true}, nil))
		t.must(in(t, h, "", "/x"))
		names, _ := out(t, h, "", "/x/")
		t.want(len(names) == 3, names)
	})
	a.check("a client that goes ends the reading", func(t *T) {
		h := t.create(nil)
		t.say(h, "dd if=/dev/zero of=/big bs=1M count=40 2>/dev/null")
		reader, err := t.StreamOut(h, "", "/big")
		t.must(err)
		_, err = io.ReadFull(reader, make([]byte, 100000))
		t.must(err)
		reader.Close()
		t.until("nobody reads", func() bool {
			ps := t.say(h, "ps -o args")
			// The shell, ps, process 1 and the line of titles.
			return strings.Count(ps, "\n") <= 3
		})
	})
}
