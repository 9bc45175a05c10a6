package main

import (
	"net/url"
	"slices"
)

func info(a *Area) {
	a.check("properties of creation are in the info", func(t *T) {
		h := t.create(m{"properties": m{"foo": "bar", "odd": "<&>\u2028é"}})
		properties := t.get(h, "info")["Properties"].(m)
		t.want(properties["foo"] == "bar" && properties["odd"] == "<&>\u2028é", properties)
	})
	a.check("what has no value is null or empty, as it always was", func(t *T) {
		got := t.get(t.create(nil), "info")
		for _, key := range []string{"Events", "ProcessIDs"} {
			value, there := got[key]
			t.want(there && value == nil, key, got)
		}
		t.equal(got["MappedPorts"], []any{})
	})
	a.check("a property that is set stands beside the old ones", func(t *T) {
		h := t.create(m{"properties": m{"old": "1"}})
		t.must(t.Call("PUT", "/containers/"+h+"/properties/new", nil, m{"value": "2"}, nil))
		got := t.get(h, "properties")
		t.want(got["old"] == "1" && got["new"] == "2", got)
	})
	a.check("a property is read, written over and removed", func(t *T) {
		h := t.create(m{"properties": m{"k": "1"}})
		path := "/containers/" + h + "/properties/k"
		t.equal(t.get(h, "properties/k"), m{"value": "1"})
		t.must(t.Call("PUT", path, nil, m{"value": "2"}, nil))
		t.equal(t.get(h, "properties/k"), m{"value": "2"})
		t.equal(t.get(h, "info")["Properties"].(m)["k"], "2")
		t.must(t.Call("DELETE", path, nil, nil, nil))
		err := t.Call("GET", path, nil, nil, nil)
		t.want(isType(err, "") && says(err, "property does not exist: k"), err)
		_, there := t.get(h, "info")["Properties"].(m)["k"]
		t.want(!there)
	})
	a.check("a list by property has exactly what fits", func(t *T) {
		owner := t.unique("owner")
		h := t.create(m{"properties": m{"owner": owner, "n": "1"}})
		t.create(m{"properties": m{"owner": owner, "n": "2"}})
		t.equal(t.list(url.Values{"owner": {owner}, "n": {"1"}}), []string{h})
		t.equal(t.list(url.Values{"owner": {owner}, "n": {"3"}}), []string{})
		t.equal(len(t.list(url.Values{"owner": {owner}})), 2)
	})
	a.check("infos in bulk", func(t *T) {
		h := t.create(m{"properties": m{"foo": "bar"}})
		var got map[string]struct {
			Info m
			Err  *Error
		}
		query := url.Values{"handles": {h + ",no-such-handle"}}
		t.must(t.Call("GET", "/containers/bulk_info", query, nil, &got))
		t.want(len(got) == 2 && got[h].Err == nil && got[h].Info["State"] == "active", got)
		t.equal(got[h].Info["Properties"].(m)["foo"], "bar")
		t.want(got["no-such-handle"].Err != nil, got)
	})
	a.check("metrics in bulk, used memory among them", func(t *T) {
		h := t.create(nil)
		t.say(h, "dd if=/dev/zero of=/dev/shm/f bs=1M count=1")
		t.until("memory", func() bool {
			var got map[string]struct {
				Metrics struct{ MemoryStat map[string]uint64 }
				Err     *Error
			}
			query := url.Values{"handles": {h + ",no-such-handle"}}
			t.must(t.Call("GET", "/containers/bulk_metrics", query, nil, &got))
			t.want(len(got) == 2 && got[h].Err == nil && got["no-such-handle"].Err != nil, got)
			return got[h].Metrics.MemoryStat["TotalUsageTowardLimit"] > 0
		})
	})
	for _, path := range []string{"bulk_info", "bulk_metrics"} {
		a.check(path+" of nobody is empty", func(t *T) {
			var got m
			t.must(t.Call("GET", "/containers/"+path, url.Values{"handles": {""}}, nil, &got))
			t.equal(got, m{})
		})
	}
	a.check("lists of handles may be long", func(t *T) {
		h := t.create(nil)
		handles := h
		for range 200 {
			handles += "," + t.unique("no-such-handle-with-a-long-name")
		}
		var got map[string]any
		t.must(t.Call("GET", "/containers/bulk_info", url.Values{"handles": {handles}}, nil, &got))
		t.equal(len(got), 201)
	})
	a.check("a container appears in the list only once", func(t *T) {
		h := t.create(nil)
		all := t.list(nil)
		at := slices.Index(all, h)
		t.want(at >= 0 && slices.Index(all[at+1:], h) < 0, all)
	})
}
