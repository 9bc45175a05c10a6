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
	"strings"
	"sync"
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
	if err != nil {
		panic(err)
	}
	r.URL.RawQuery = query.Encode()
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	return r
}

func encode(value any) *bytes.Buffer {
	b := &bytes.Buffer{}
	if err := json.NewEncoder(b).Encode(value); err != nil {
		panic(err)
	}
	return b
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
		body, kind = encode(in), "application/json"
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

// Output is what a process has written so far.
type Output struct {
	lock sync.Mutex
	b    bytes.Buffer
}

func (o *Output) Write(p []byte) (int, error) {
	o.lock.Lock()
	defer o.lock.Unlock()
	return o.b.Write(p)
}

func (o *Output) String() string {
	o.lock.Lock()
	defer o.lock.Unlock()
	return o.b.String()
}

// Has says whether a text is in it.
func (o *Output) Has(text string) bool { return strings.Contains(o.String(), text) }

// Process is a process or pea with its connections.
type Process struct {
	ID, Stream     string
	Stdout, Stderr *Output
	handle         string
	client         *Client
	conn           net.Conn
	decoder        *json.Decoder
	drained        chan error
	readers        int
	once           sync.Once
	status         int
	err            error
}

type payload struct {
	ProcessID  string  `json:"process_id,omitempty"`
	StreamID   string  `json:"stream_id,omitempty"`
	Source     *int    `json:"source,omitempty"`
	Data       *string `json:"data,omitempty"`
	ExitStatus *int    `json:"exit_status,omitempty"`
	Error      *string `json:"error,omitempty"`
	TTY        any     `json:"tty,omitempty"`
	Signal     *int    `json:"signal,omitempty"`
}

// Control starts a process and reads no output. The empty objects are what Go's clients always send.
func (c *Client) Control(handle string, spec m) (*Process, error) {
	for _, key := range []string{"rlimits", "image"} {
		if spec[key] == nil {
			spec[key] = m{}
		}
	}
	return c.control(handle, request("POST", "/containers/"+handle+"/processes", nil, "application/json", encode(spec)))
}

// Run starts a process and reads both its outputs.
func (c *Client) Run(handle string, spec m) (*Process, error) {
	p, err := c.Control(handle, spec)
	if err != nil {
		return nil, err
	}
	return p, p.Read("stdout", "stderr")
}

// Attach finds a process that was started before, and reads both its outputs.
func (c *Client) Attach(handle, id string) (*Process, error) {
	p, err := c.control(handle, request("GET", "/containers/"+handle+"/processes/"+id, nil, "", nil))
	if err != nil {
		return nil, err
	}
	return p, p.Read("stdout", "stderr")
}

func (c *Client) control(handle string, r *http.Request) (*Process, error) {
	conn, reader, err := c.hijack(r)
	if err != nil {
		return nil, err
	}
	p := &Process{Stdout: &Output{}, Stderr: &Output{}, handle: handle, client: c, conn: conn,
		decoder: json.NewDecoder(reader), drained: make(chan error, 2)}
	var first payload
	if err := p.decoder.Decode(&first); err != nil {
		conn.Close()
		return nil, fmt.Errorf("first payload: %w", err)
	}
	p.ID, p.Stream = first.ProcessID, first.StreamID
	return p, nil
}

// Read receives outputs: "stdout", "stderr".
func (p *Process) Read(names ...string) error {
	for _, name := range names {
		to := map[string]*Output{"stdout": p.Stdout, "stderr": p.Stderr}[name]
		conn, reader, err := p.client.output(p.handle, p.ID, p.Stream, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		p.readers++
		go func() {
			defer conn.Close()
			_, err := io.Copy(to, reader)
			p.drained <- err
		}()
	}
	return nil
}

// output opens the connection of one output of a stream.
func (c *Client) output(handle, id, stream, name string) (net.Conn, *bufio.Reader, error) {
	path := "/containers/" + handle + "/processes/" + id + "/attaches/" + stream + "/" + name
	return c.hijack(request("GET", path, nil, "application/json", nil))
}

func (p *Process) say(what payload) error {
	what.ProcessID = p.ID
	return json.NewEncoder(p.conn).Encode(what)
}

// Write sends standard input.
func (p *Process) Write(data string) error {
	stdin := 0
	return p.say(payload{Source: &stdin, Data: &data})
}

// CloseStdin ends standard input.
func (p *Process) CloseStdin() error { stdin := 0; return p.say(payload{Source: &stdin}) }

// Signal sends 0 (terminate) or 1 (kill).
func (p *Process) Signal(n int) error { return p.say(payload{Signal: &n}) }

// Resize tells the terminal's size.
func (p *Process) Resize(columns, rows int) error {
	return p.say(payload{TTY: m{"window_size": m{"columns": columns, "rows": rows}}})
}

// Leave closes the connection in the middle.
func (p *Process) Leave() { p.conn.Close() }

// Wait gives the exit status after all output has arrived; again the same when it is called again.
func (p *Process) Wait() (int, error) {
	p.once.Do(func() { p.status, p.err = p.wait() })
	return p.status, p.err
}

func (p *Process) wait() (int, error) {
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
		for range p.readers {
			if err := <-p.drained; err != nil {
				return 0, err
			}
		}
		return *got.ExitStatus, nil
	}
}
