package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// raw sends bytes as they are and reads one response.
func (t *T) raw(request string) (*http.Response, string) {
	conn, err := t.dial()
	t.must(err)
	defer conn.Close()
	_, err = io.WriteString(conn, request)
	t.must(err)
	reply, err := http.ReadResponse(bufio.NewReader(conn), nil)
	t.must(err)
	body, err := io.ReadAll(reply.Body)
	t.must(err)
	return reply, string(body)
}

func plain(method, path, headers, body string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: %d\r\n%s\r\n%s",
		method, path, len(body), headers, body)
}

func api(a *Area) {
	a.check("ping", func(t *T) {
		reply, body := t.raw(plain("GET", "/ping", "", ""))
		t.want(reply.StatusCode == 200 && body == "{}\n" && reply.Header.Get("Content-Type") == "application/json", reply, body)
	})
	a.check("requests without a content type are taken", func(t *T) {
		h := t.unique("go")
		reply, body := t.raw(plain("POST", "/containers", "", `{"handle":"`+h+`"}`))
		t.want(reply.StatusCode == 200 && body == `{"Handle":"`+h+`"}`+"\n", reply.StatusCode, body)
		t.undo = append(t.undo, func() { t.Call("DELETE", "/containers/"+h, nil, nil, nil) })
		reply, body = t.raw(plain("PUT", "/containers/"+h+"/properties/k", "Content-Type: text/plain\r\n", `{"value":"v"}`))
		t.want(reply.StatusCode == 200, reply.StatusCode, body)
		t.equal(t.get(h, "properties/k"), m{"value": "v"})
	})
	a.check("JSON is read as Go reads it", func(t *T) {
		h := t.unique("go")
		reply, body := t.raw(plain("POST", "/containers", "",
			`{"unknown":[1],"HANDLE":"`+h+`","Properties":{"k":"v"},"env":null,"limits":null,"bind_mounts":null,"grace_time":null} rest`))
		t.want(reply.StatusCode == 200, body)
		t.undo = append(t.undo, func() { t.Call("DELETE", "/containers/"+h, nil, nil, nil) })
		t.equal(t.get(h, "properties/k"), m{"value": "v"})
	})
	a.check("an empty body is an error, in Go's word", func(t *T) {
		reply, body := t.raw(plain("POST", "/containers", "", ""))
		t.want(reply.StatusCode == 500 && strings.Contains(body, `"Message":"EOF"`), reply.StatusCode, body)
	})
	a.check("unknown paths and methods", func(t *T) {
		reply, body := t.raw(plain("GET", "/nope", "", ""))
		t.want(reply.StatusCode == 404 && body == "404 page not found\n", reply.StatusCode, body)
		reply, body = t.raw(plain("POST", "/ping", "", ""))
		t.want(reply.StatusCode == 405 && reply.Header.Get("Allow") == "GET", reply.StatusCode, reply.Header, body)
	})
	a.check("errors have all their keys", func(t *T) {
		reply, body := t.raw(plain("GET", "/containers/nobody/info", "", ""))
		t.equal(reply.StatusCode, 404)
		t.equal(body, `{"Type":"ContainerNotFoundError","Message":"unknown handle: nobody","Handle":"nobody","ProcessID":"","Binary":""}`+"\n")
	})
	a.check("of two destroys at once one does it", func(t *T) {
		h := t.create(nil)
		errs := make([]error, 2)
		together(2, func(n int) { errs[n] = t.Call("DELETE", "/containers/"+h, nil, nil, nil) })
		if errs[0] == nil {
			errs[0], errs[1] = errs[1], errs[0]
		}
		t.must(errs[1])
		t.want(says(errs[0], "container already being destroyed") || isType(errs[0], "ContainerNotFoundError"), errs[0])
	})
	a.check("empty data is not the end of input", func(t *T) {
		p := t.start(t.create(nil), m{"path": "cat"})
		t.must(p.Write(""))
		t.must(p.Write("after\n"))
		t.until("the echo", func() bool { return p.Stdout.Has("after\n") })
		t.must(p.CloseStdin())
		t.equal(t.end(p).Code, 0)
	})
	a.check("signals count after the end of input", func(t *T) {
		p := t.start(t.create(nil), sh("cat; echo ready; exec sleep 12345"))
		t.must(p.CloseStdin())
		t.until("ready", func() bool { return p.Stdout.Has("ready") })
		t.must(p.Signal(0))
		t.equal(t.end(p).Code, 143)
	})
	a.check("an unknown stream is empty", func(t *T) {
		for _, id := range []string{"999999999", "abc"} {
			conn, reader, err := t.output("any", "thing", id, "stdout")
			t.must(err)
			rest, err := io.ReadAll(reader)
			t.must(err)
			conn.Close()
			t.equal(len(rest), 0)
		}
	})
}
