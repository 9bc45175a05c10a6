#!/usr/bin/env python3
"""Networks of containers under kernels that load their modules when they are asked for: ways in and out, rules, limits, a killed server, a flushed
firewall, and what is left. The guest itself is the host; a network namespace of it is the internet."""
import argparse, json, subprocess, tarfile, time
import lab, vm

LIMIT = 420
HOST, HOST_V6, AWAY = "10.77.0.2", "fd77::2", "10.77.0.1"
INTERNET, INTERNET_2, INTERNET_V6 = "8.8.8.8", "9.9.9.9", "2001:db8::8"
PORT = 8080
REFUSED = "EHOSTUNREACH"
SERVE = ("WARDIAN_NETWORK=bridge wardian serve --root /mnt/store --external-ip 10.77.0.2 --network-pool-v6 fd00:1::/96 "
         "--deny-network 9.9.9.9/32 --deny-network 2001:db8::9/128 --dns-server 8.8.8.8 >> /tmp/log 2>&1 &")
WORLD = f"""
ip() {{ /usr/sbin/ip "$@"; }}
ip netns add away
ip link add uplink type veth peer name net0 netns away
ip addr add {HOST}/24 dev uplink; ip addr add {HOST_V6}/64 dev uplink nodad; ip link set uplink up
ip -n away link set lo up; ip -n away link set net0 up
ip -n away addr add {AWAY}/24 dev net0; ip -n away addr add fd77::1/64 dev net0 nodad
for address in {INTERNET} {INTERNET_2} {INTERNET_V6} 2001:db8::9; do ip -n away addr add $address dev lo nodad; done
ip route add default via {AWAY}; ip -6 route add default via fd77::1
for port in 80 443; do ip netns exec away /bin/net serve internet $port > /dev/null & done
/bin/net serve host 9000 > /dev/null &
"""
"""The host's uplink, what answers at the other end, and a program that listens on the host."""


class Lab(lab.Lab):
    def serve(self):
        super().serve(SERVE)

    def ask(self, container, *questions):
        """What a program in a container hears, a line for each question: see net.c. All in one process: each costs an emulated machine a second."""
        said = self.sh(f"wardian exec {container} -- sh -c '" + "; ".join(f"net {each} 2>&1" for each in questions) + "' || true").splitlines()
        assert len(said) == len(questions), said
        return said if len(said) != 1 else said[0]

    def away(self, how, address, port):
        return self.sh(f"/usr/sbin/ip netns exec away /bin/net {how} {address} {port} || true").strip()

    def info(self, container):
        return json.loads(self.wardian(f"inspect {container}"))["info"]

    def until(self, what, holds):
        end = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < end, f"never: {what}\n{self.sh('tail -5 /tmp/log; dmesg | tail -5')}"
            time.sleep(0.2)


def doctor(lab):
    """Nothing of the network's modules is loaded yet: what it tries has the kernel load them."""
    report = json.loads(lab.sh("wardian doctor --json --no-measure --root /mnt/store; true"))
    for feature in "network_links", "firewall", "bandwidth_limits", "connection_deletes":
        assert report["features"][feature]["state"] == "yes", report["features"][feature]
    ids = {hazard["id"] for hazard in report["hazards"]}
    assert not ids & {"no-network", "foreign-firewall", "address-collision", "network-unknown", "bridge-filter"}, report["hazards"]


def out(lab):
    lab.wardian(f"run --name a -d -p 5000:{PORT} -p 5001:{PORT}/udp /share/busybox.tar -- net serve a {PORT}")
    lab.wardian(f"run --name b -d --privileged --network 10.9.0.5/24 /share/busybox.tar -- net serve b {PORT}")
    lab.wardian("run --name n -d --network 10.9.0.6/24 /share/busybox.tar -- sleep 100000")
    four, six = f"ok internet from {HOST}", f"ok internet from {HOST_V6}"
    for name in "a", "b":
        said = lab.ask(name, *(f"{how} {address} 80" for how in ("tcp", "udp") for address in (INTERNET, INTERNET_V6)),
                       f"tcp {HOST} 9000", "udp 10.254.0.1 9000")
        assert said == [four, six, four, six, REFUSED, REFUSED], f"{name}: {said}"
        lab.wardian(f"exec {name} -- sh -c 'ping -c 1 -W 3 {INTERNET} && ping -c 1 -W 3 {INTERNET_V6}'")


def within(lab):
    for name, other, ips in ("a", "b", ["10.9.0.5", "fd00:1::a09:5"]), ("b", "a", ["10.254.0.2", "fd00:1::afe:2"]):
        said = lab.ask(name, *(f"tcp {ip} {PORT}" for ip in ips))
        assert all(answer.startswith(f"ok {other} from ") for answer in said), f"{name}: {said}"
        # A ping each way: both are translated, and neither may be told of a shorter way.
        lab.wardian(f"exec {name} -- sh -c 'ping -c 1 -W 3 {ips[0]} && ping -c 1 -W 3 {ips[1]}'")
    # With a neighbour, on one bridge: what is forged stays where it is.
    link = lab.info("b")["Properties"]["kawasaki.container-interface"]
    assert lab.ask("b", f"arp {link} 10.9.0.6", f"nd {link} na fd00:1::a09:6 fd00:1::a09:6") == ["ok sent", "ok sent"]
    said = lab.ask("n", f"tcp 10.9.0.5 {PORT}", f"tcp {INTERNET} 80", f"tcp {INTERNET_V6} 80")
    assert said == ["ok b from 10.9.0.6", f"ok internet from {HOST}", f"ok internet from {HOST_V6}"], said


def mapped(lab):
    for how, port in ("tcp", 5000), ("udp", 5001):
        assert lab.away(how, HOST, port) == f"ok a from {AWAY}"
        assert lab.sh(f"/bin/net {how} {HOST} {port}").startswith("ok a from ")
    for name in "a", "b":
        said = lab.ask(name, f"tcp {HOST} 5000", f"udp {HOST} 5001")
        assert all(answer.startswith("ok a from ") for answer in said), f"{name}: {said}"
    assert lab.away("udp", HOST, 5000) == "ECONNREFUSED"


DENIED = [f"tcp {INTERNET_2} 80", f"udp {INTERNET_2} 80", f"tcp {INTERNET_2} 443", "tcp 2001:db8::9 80"]
CLOSED = [REFUSED, REFUSED, REFUSED, "EACCES"]
OPENED = [f"ok internet from {HOST}", *CLOSED[1:]]


def rules(lab):
    assert lab.ask("a", *DENIED) == CLOSED
    lab.wardian("allow a 9.9.9.9:80")
    assert lab.ask("a", *DENIED) == OPENED and lab.ask("b", *DENIED) == CLOSED


def bandwidth(lab):
    """300 KB at 100 KB/s, both ways."""
    lab.wardian("run --name slow -d --bandwidth 100000:20000 /share/busybox.tar -- sleep 100000")
    assert json.loads(lab.wardian("inspect slow"))["limits"]["bandwidth"]["rate"] == 100000
    for name in "slow", "a":
        lab.wardian(f"exec {name} -- sh -c 'mkdir -p /tmp/w; head -c 300000 /dev/zero > /tmp/w/f; httpd -p 7000 -h /tmp/w'")
    ip = lab.info("slow")["ContainerIP"]
    for name, other in ("slow", "10.254.0.2"), ("a", ip):
        begin = time.monotonic()
        got = lab.wardian(f"exec {name} -- sh -c 'wget -q -O - http://{other}:7000/f | wc -c'").strip()
        took = time.monotonic() - begin
        assert got == "300000" and took > 2.3, f"{name}: {got} bytes in {took} s"
    lab.wardian("rm slow")


def survival(lab):
    before = [lab.info(name) for name in "ab"]
    lab.sh("kill -9 $(pidof wardian)")
    assert lab.away("tcp", HOST, 5000) == f"ok a from {AWAY}"
    lab.serve()
    assert [lab.info(name) for name in "ab"] == before
    assert lab.away("tcp", HOST, 5000) == f"ok a from {AWAY}"
    assert lab.ask("a", *DENIED) == OPENED and lab.ask("b", *DENIED) == CLOSED
    assert "already allocated" in lab.wardian("create --name x --network 10.9.0.5/24 /share/busybox.tar", 1)


def flush(lab):
    lab.sh("nft flush ruleset")
    lab.until("the firewall is back", lambda: lab.away("tcp", HOST, 5000).startswith("ok a") and lab.ask("b", *DENIED) == CLOSED)
    assert lab.ask("a", *DENIED) == OPENED


def end(lab):
    """Nothing is left of containers, and then of the server."""
    lab.wardian("rm a b n")
    rest = lab.sh("nft list ruleset")
    for trace in '"a"', '"b"', '"n"', "10.9.0.", "10.254.0.2 ":
        assert trace not in rest, rest
    links = "/usr/sbin/ip -o link | grep -E 'wbrdg-0a09|w[0-9a-v]{11}-[012].* master ' | cut -d: -f2 || true"
    lab.until("links are gone", lambda: lab.sh(links).strip() == "")
    assert lab.away("tcp", HOST, 5000) == "ECONNREFUSED"
    lab.sh("kill $(pidof wardian)")
    lab.until("the server has ended", lambda: lab.sh("pidof wardian; true").strip() == "")
    assert lab.sh("nft list tables").strip() == ""
    # The module ifb makes two devices when it is loaded.
    lab.until("all links are gone", lambda: lab.sh("/usr/sbin/ip -o link | grep -vE ': (lo|uplink|ifb0|ifb1)[@:]' || true").strip() == "")
    assert "nothing is left" in lab.wardian("doctor --leaks")


PARTS = [out, within, mapped, rules, bandwidth, survival, flush, end]


def equip(work, share):
    """Adds the program of net.c to the image and to the guest."""
    subprocess.run(["cc", "-static", "-O1", "-o", work + "/net", vm.HERE + "/../../crates/wardian/tests/e2e/net.c"], check=True)
    with tarfile.open(work + "/busybox.tar", "a") as tar:
        tar.add(work + "/net", "bin/net")
    share["/bin/net"] = work + "/net"


class Test:
    def __init__(self, bundle, program, say=print):
        self.bundle, self.program, self.say = bundle, program, say

    def run(self):
        with lab.guest("networks", self.bundle, self.program, LIMIT, programs=("nft", "ip"), equip=equip) as guest:
            tried = Lab(guest)
            lab.play([doctor], tried, self.say)
            guest.sh(WORLD)
            tried.serve()
            lab.play(PARTS, tried, self.say)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--kernel", default="6.12")
    a = p.parse_args()
    Test(vm.kernel(a.kernel), vm.program()).run()
