// Checks a Garden server from outside, through Go's own HTTP stack. See README.md.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

// The areas, in the order of their output.
var areas = []struct {
	name string
	add  func(*Area)
}{
	{"api", api},
	{"lifecycle", lifecycle},
	{"process", process},
	{"tty", tty},
	{"stop", stop},
	{"stream", stream},
	{"grace", grace},
	{"info", info},
	{"metrics", metrics},
	{"devices", devices},
	{"limits", limits},
	{"disk limits", diskLimits},
	{"security", security},
	{"users", users},
	{"peas", peas},
	{"binds", binds},
	{"network", network},
	{"network names", names},
	{"network restarts", restarts},
	{"network plugins", plugins},
}

func usage() {
	fmt.Fprint(os.Stderr, `usage: garden-client [-debug ADDRESS] [-disk-limits] [-only TEXT] [-serve PROGRAM -outside NAMESPACE -probe PROGRAM] unix|tcp ADDRESS ROOTFS
  -debug ADDRESS  also check the server's debug address: HOST:PORT or a socket's /PATH
  -disk-limits    also check disk limits: the server's store has a driver of them
  -only TEXT      run the checks whose names contain TEXT
  -serve PROGRAM, -outside NAMESPACE, -probe PROGRAM
                  also check networks, with servers of this wardian; README.md says what the others are
`)
	os.Exit(2)
}

func main() {
	debug := flag.String("debug", "", "")
	limited := flag.Bool("disk-limits", false, "")
	only := flag.String("only", "", "")
	serve := flag.String("serve", "", "")
	outside := flag.String("outside", "", "")
	probe := flag.String("probe", "", "")
	flag.Usage = usage
	flag.Parse()
	if flag.NArg() != 3 || (*serve == "") != (*outside == "" || *probe == "") {
		usage()
	}
	dir, err := os.MkdirTemp("", "garden-client-")
	if err == nil {
		// Users in containers look into what is bound from here.
		err = os.Chmod(dir, 0o755)
	}
	s := &Suite{Client: NewClient(flag.Arg(0), flag.Arg(1)), dir: dir, debug: *debug, only: *only,
		diskLimits: *limited, serve: *serve, outside: *outside, probe: *probe}
	if err == nil {
		s.image = filepath.Join(dir, "image.tar")
		err = makeImage(flag.Arg(2), s.image, *probe)
	}
	if err != nil {
		fmt.Println("FAILED preparation:", err)
		os.Exit(1)
	}
	for _, area := range areas {
		area.add(&Area{s, area.name})
	}
	good := s.run()
	os.RemoveAll(dir)
	if !good {
		os.Exit(1)
	}
}
