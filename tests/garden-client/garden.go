package main

// A Garden client on Go's standard library alone: the same transport, the same request framing and the
// same connection take-over (httputil.ClientConn, with its strict idea of when a connection may be kept)
// as the clients that schedulers use. A server that answers this one has passed Go's own HTTP checks.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

// Error is a Garden error as it stands in a reply's body.
type Error struct{ Type, Message, Handle, ProcessID, Binary string }

func (e *Error) Error() string { return e.Type + " " + e.Message }

type m = map[string]any

// Client speaks to one server.
type Client struct {
	dial func() (net.Conn, error)
	http *http.Client
}

// NewClient makes a client; nothing is dialled yet.
func NewClient(network, address string) *Client {
	dial := func() (net.Conn, error) { return net.DialTimeout(network, address, 2*time.Second) }
	return &Client{dial, &http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return dial() },
		DisableKeepAlives: true,
	}}}
}

func request(method, path string, query url.Values, kind string, body io.Reader) *http.Request {
	r, err := http.NewRequest(method, "http://api"+path, body)
	check("request", err)
	r.URL.RawQuery = query.Encode()
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	return r
}

func failure(status int, body io.Reader) error {
	e := &Error{}
	raw, _ := io.ReadAll(body)
	if err := json.Unmarshal(raw, e); err != nil {
		return fmt.Errorf("bad response %d: %v: %q", status, err, raw)
	}
	return e
}

func (c *Client) send(r *http.Request) (io.ReadCloser, error) {
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, failure(resp.StatusCode, resp.Body)
	}
	return resp.Body, nil
}

// Call makes one JSON request; in and out may be nil.
func (c *Client) Call(method, path string, query url.Values, in, out any) error {
	var body io.Reader
	kind := ""
	if in != nil {
		b := &bytes.Buffer{}
		check("encode", json.NewEncoder(b).Encode(in))
		body, kind = b, "application/json"
	}
	reply, err := c.send(request(method, path, query, kind, body))
	if err != nil {
		return err
	}
	defer reply.Close()
	if out == nil {
		out = &m{}
	}
	return json.NewDecoder(reply).Decode(out)
}

// StreamIn sends a tar; an unsized reader goes chunked.
func (c *Client) StreamIn(handle, user, destination string, tar io.Reader) error {
	q := url.Values{"user": {user}, "destination": {destination}}
	reply, err := c.send(request("PUT", "/containers/"+handle+"/files", q, "application/x-tar", tar))
	if err == nil {
		reply.Close()
	}
	return err
}

// StreamOut receives a tar.
func (c *Client) StreamOut(handle, user, source string) (io.ReadCloser, error) {
	q := url.Values{"user": {user}, "source": {source}}
	return c.send(request("GET", "/containers/"+handle+"/files", q, "", nil))
}

func (c *Client) hijack(r *http.Request) (net.Conn, *bufio.Reader, error) {
	conn, err := c.dial()
	if err != nil {
		return nil, nil, err
	}
	//lint:ignore SA1019 what Garden's clients use: it fails on a reply that closes the connection.
	taken := httputil.NewClientConn(conn, nil)
	resp, err := taken.Do(r)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer conn.Close()
		return nil, nil, failure(resp.StatusCode, resp.Body)
	}
	conn, reader := taken.Hijack()
	return conn, reader, nil
}

// Process is a process or pea with its three connections.
type Process struct {
	ID             string
	Stdout, Stderr *bytes.Buffer
	conn           net.Conn
	decoder        *json.Decoder
	drained        chan error
}

type payload struct {
	ProcessID  string  `json:"process_id,omitempty"`
	StreamID   string  `json:"stream_id,omitempty"`
	Source     *int    `json:"source,omitempty"`
	Data       *string `json:"data,omitempty"`
	ExitStatus *int    `json:"exit_status,omitempty"`
	Error      *string `json:"error,omitempty"`
	Signal     *int    `json:"signal,omitempty"`
}

// Run starts a process. The empty objects are what Go's clients always send.
func (c *Client) Run(handle string, spec m) (*Process, error) {
	for _, key := range []string{"rlimits", "image"} {
		if spec[key] == nil {
			spec[key] = m{}
		}
	}
	b := &bytes.Buffer{}
	check("encode", json.NewEncoder(b).Encode(spec))
	return c.stream(handle, request("POST", "/containers/"+handle+"/processes", nil, "application/json", b))
}

// Attach finds a process that was started before.
func (c *Client) Attach(handle, id string) (*Process, error) {
	return c.stream(handle, request("GET", "/containers/"+handle+"/processes/"+id, nil, "", nil))
}

func (c *Client) stream(handle string, r *http.Request) (*Process, error) {
	conn, reader, err := c.hijack(r)
	if err != nil {
		return nil, err
	}
	p := &Process{Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}, conn: conn, drained: make(chan error, 2)}
	p.decoder = json.NewDecoder(reader)
	var first payload
	if err := p.decoder.Decode(&first); err != nil {
		return nil, fmt.Errorf("first payload: %w", err)
	}
	p.ID = first.ProcessID
	for name, to := range map[string]*bytes.Buffer{"stdout": p.Stdout, "stderr": p.Stderr} {
		path := "/containers/" + handle + "/processes/" + p.ID + "/attaches/" + first.StreamID + "/" + name
		conn, reader, err := c.hijack(request("GET", path, nil, "application/json", nil))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		go func() {
			defer conn.Close()
			_, err := io.Copy(to, reader)
			p.drained <- err
		}()
	}
	return p, nil
}

func (p *Process) say(what payload) {
	what.ProcessID = p.ID
	check("payload", json.NewEncoder(p.conn).Encode(what))
}

// Write sends standard input.
func (p *Process) Write(data string) { stdin := 0; p.say(payload{Source: &stdin, Data: &data}) }

// CloseStdin ends standard input.
func (p *Process) CloseStdin() { stdin := 0; p.say(payload{Source: &stdin}) }

// Signal sends 0 (terminate) or 1 (kill).
func (p *Process) Signal(n int) { p.say(payload{Signal: &n}) }

// Wait gives the exit status after all output has arrived.
func (p *Process) Wait() (int, error) {
	defer p.conn.Close()
	for {
		var got payload
		if err := p.decoder.Decode(&got); err != nil {
			return 0, fmt.Errorf("decode failed: %w", err)
		}
		if got.Error != nil {
			return 0, fmt.Errorf("process error: %s", *got.Error)
		}
		if got.ExitStatus == nil {
			continue
		}
		for range 2 {
			if err := <-p.drained; err != nil {
				return 0, err
			}
		}
		return *got.ExitStatus, nil
	}
}
