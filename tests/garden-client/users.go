package main

import "strings"

func users(a *Area) {
	ids := "echo $(id -u) $(id -g) $(id -G)"
	for user, want := range map[string]string{
		"":                    "0 0 0 10",
		"root":                "0 0 0 10",
		"alice":               "1001 1010 1010 1011",
		"1001":                "1001 1010 1010 1011",
		"1001:1002":           "1001 1002 1002",
		"testuser:staff":      "1000 50 50",
		"3333":                "3333 0 0",
		"large":               "1000000000 1000000000 1000000000",
		"2147483647:50000":    "2147483647 50000 50000",
		"1000000000:50":       "1000000000 50 50",
		"operator:1000000001": "37 1000000001 1000000001",
	} {
		a.check("ids of user '"+user+"'", func(t *T) {
			t.equal(t.say(t.create(nil), ids, "user", user, "dir", "/"), want)
		})
	}
	a.check("an unknown user", func(t *T) {
		h := t.create(nil)
		_, err := t.Run(h, sh("true", "user", "invalid-user"))
		t.want(isType(err, "") && says(err, "unable to find user invalid-user: no matching entries in passwd file"), err)
		_, err = t.Run(h, sh("true", "user", "alice:no-such-group"))
		t.want(isType(err, "") && says(err, "unable to find group no-such-group: no matching entries in group file"), err)
		_, err = t.Run(h, sh("true", "user", "2147483648"))
		t.want(isType(err, "") && says(err, "uids and gids must be in range 0-2147483647"), err)
	})
	a.check("without a passwd file root works, nobody else", func(t *T) {
		h := t.create(nil)
		for _, remove := range []string{": >/etc/passwd", "rm /etc/passwd"} {
			t.say(h, remove)
			t.equal(t.say(h, "id -u; pwd", "user", "root"), "0\n/")
			t.equal(t.say(h, "id -u; pwd"), "0\n/")
			_, err := t.Run(h, sh("true", "user", "invalid-user"))
			t.want(says(err, "unable to find user invalid-user: no matching entries in passwd file"), err)
		}
	})
	a.check("HOME, USER and PWD are the user's", func(t *T) {
		h := t.create(nil)
		t.equal(t.say(h, "echo $HOME $USER $PWD", "user", "alice"), "/home/alice alice /home/alice")
		t.equal(t.say(h, "echo $HOME $USER", "user", "alice", "env", []string{"HOME=/nowhere", "USER=someone"}), "/nowhere someone")
		t.equal(t.say(h, "echo $HOME $USER $PWD", "user", "1234:5678"), "/ 1234:5678 /")
	})
	a.check("files of an image keep owners, set-user bits and dots", func(t *T) {
		h := t.create(nil)
		t.equal(t.say(h, "stat -c %U:%G /home/alice/alicesfile /bin/su /.foo"), "alice:alice\nroot:root\nroot:root")
		t.equal(t.say(h, "stat -c %a /bin/su; cat /.foo"), "4755\nthis is a pre-existing dotfile")
		t.equal(t.say(h, "stat -c %U /dev/pts /dev/pts/ptmx"), "root\nroot")
		t.equal(t.say(h, "/bin/su root -c id | cut -c1-11", "user", "alice"), "uid=0(root)")
	})
	a.check("users made inside are known at once", func(t *T) {
		h := t.create(nil)
		t.say(h, "echo 'new:x:5000:5001::/home/new:/bin/sh' >>/etc/passwd; mkdir -p /home/new")
		got := strings.Fields(t.say(h, ids+"; pwd", "user", "new"))
		t.equal(strings.Join(got, " "), "5000 5001 5001 /home/new")
	})
}
