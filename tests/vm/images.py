"""Images made from a seed, and what the store must hold of them: the disk under test has no say in what is right."""
import gzip, hashlib, io, json, os, random, tarfile

MTIME = 1_500_000_000


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Layer:
    """A layer's tar and `tree`, {path: facts} of what it makes on the disk (whiteouts as overlayfs has them)."""

    def __init__(self, seed, files, over=None, big=0):
        self.dice, self.tree, self.file = random.Random(seed), {}, io.BytesIO()
        with tarfile.open(fileobj=self.file, mode="w", format=tarfile.PAX_FORMAT) as self.tar:
            self.fill(files, over, big)
        self.data = self.file.getvalue()
        self.diff_id = sha256(self.data)

    def add(self, path, kind, data=b"", target="", mode=None, xattrs=None):
        d, info = self.dice, tarfile.TarInfo(path)
        info.type, info.size, info.linkname = kind, len(data), target
        info.mode = d.choice((0o644, 0o600, 0o755, 0o4755, 0o400, 0)) if mode is None else mode
        info.uid, info.gid, info.mtime = d.choice((0, 33, 1000, 70000)), d.choice((0, 33, 1000)), MTIME + d.randrange(10**8)
        info.pax_headers = {f"SCHILY.xattr.{k}": v for k, v in (xattrs or {}).items()}
        self.tar.addfile(info, io.BytesIO(data))
        if kind == tarfile.LNKTYPE:
            self.tree[path] = self.tree[target]
            self.tree[path]["names"].append(path)
            self.tree[path]["names"].sort()
            return
        self.tree[path] = {"type": kind, "mode": 0o777 if kind == tarfile.SYMTYPE else info.mode, "uid": info.uid, "gid": info.gid,
                           "mtime": info.mtime, "target": target, "size": len(data), "sha256": sha256(data), "xattrs": xattrs or {},
                           "names": [path]}

    def fill(self, files, over, big):
        d, dirs, regular = self.dice, [""], []
        self.add(".", tarfile.DIRTYPE, mode=0o755)
        top = f"d{d.randrange(10**6)}"
        for i in range(files):
            above = d.choice(dirs)
            path = f"{above}/{'ü' * (i % 50 == 7)}f{i}".lstrip("/")
            what = d.random()
            if what < 0.08 or i == 0:
                path = f"{above}/{top}.{i}".lstrip("/")
                self.add(path, tarfile.DIRTYPE, mode=d.choice((0o755, 0o700, 0o1777, 0o2775)))
                dirs.append(path)
            elif what < 0.13:
                self.add(path, tarfile.SYMTYPE, target=d.choice(("/etc/passwd", "../x", "f1")))
            elif what < 0.2 and regular:
                self.add(path, tarfile.LNKTYPE, target=d.choice(regular))
            elif what < 0.21:
                self.add(path, tarfile.FIFOTYPE)
            else:
                # Empty, tiny (ext4 keeps such in the inode), one page and a bit, and larger ones.
                length = d.choice((0, 0, 1, 40, 100, 700, 4096, 4097, 9000, 20000, 65536, 150000))
                self.add(path, tarfile.REGTYPE, d.randbytes(length), xattrs={"user.seed": str(i)} if i % 20 == 3 else None)
                regular.append(path)
        if big:
            self.add("big", tarfile.REGTYPE, d.randbytes(big))
        if over:
            self.hide([p for p, f in over.tree.items() if f["type"] == tarfile.REGTYPE][0])

    def hide(self, path):
        """A whiteout of what the layer below has."""
        above, _, name = path.rpartition("/")
        part = ""
        for piece in above.split("/") if above else []:
            part = f"{part}/{piece}".lstrip("/")
            if part not in self.tree:
                self.add(part, tarfile.DIRTYPE, mode=0o755)
        self.tar.addfile(tarfile.TarInfo(f"{above}/.wh.{name}".lstrip("/")))
        if path not in self.tree:
            self.tree[path] = {"type": tarfile.CHRTYPE, "names": [path]}


class Image:
    """layers: bottom first. chains: their chain ids (OCI image spec), by which the store names them."""

    def __init__(self, name, layers):
        self.name, self.layers, self.chains = name, layers, []
        for layer in layers:
            above = f"sha256:{self.chains[-1]} sha256:{layer.diff_id}" if self.chains else None
            self.chains.append(sha256(above.encode()) if above else layer.diff_id)

    def write(self, folder):
        """As an OCI layout; the source is oci://FOLDER/NAME:latest."""
        blobs = f"{folder}/{self.name}/blobs/sha256"
        os.makedirs(blobs)

        def blob(data, media, **more):
            digest = sha256(data)
            with open(f"{blobs}/{digest}", "wb") as f:
                f.write(data)
            return {"mediaType": f"application/vnd.oci.image.{media}", "digest": f"sha256:{digest}", "size": len(data), **more}

        zipped = [gzip.compress(layer.data, 1, mtime=0) for layer in self.layers]
        rootfs = {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in self.layers]}
        config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": blob(config, "config.v1+json"),
                    "layers": [blob(data, "layer.v1.tar+gzip") for data in zipped]}
        entry = blob(json.dumps(manifest).encode(), "manifest.v1+json", annotations={"org.opencontainers.image.ref.name": "latest"})
        for name, data in ("index.json", {"schemaVersion": 2, "manifests": [entry]}), ("oci-layout", {"imageLayoutVersion": "1.0.0"}):
            with open(f"{folder}/{self.name}/{name}", "w") as f:
                json.dump(data, f)


def images(seed, count=6, files=120, big=0):
    """Images of four layers; the lower two are shared by all of one seed. big: bytes of one more file in each of the others."""
    base = Layer(f"{seed} base", files)
    middle = Layer(f"{seed} middle", files, base)
    made = []
    for i in range(count):
        third = Layer(f"{seed} {i} third", files, middle, big)
        made.append(Image(f"image{seed}-{i}", [base, middle, third, Layer(f"{seed} {i} top", files // 2, third, big)]))
    return made


def trees(tar):
    """{chain: {path: facts}, …} of a tar of the store's layers/, in the form of Layer.tree; and {chain: record}."""
    found, records, first = {}, {}, {}
    for info in tar:
        chain, _, path = info.name.removeprefix("./").partition("/")
        if not chain or chain == ".":
            continue
        tree = found.setdefault(chain, {})
        if path == "layer.json":
            records[chain] = tar.extractfile(info).read()
        if path != "fs" and not path.startswith("fs/"):
            continue
        path = path.removeprefix("fs").removeprefix("/") or "."
        if info.type == tarfile.LNKTYPE:
            facts = tree[path] = first[info.linkname]
            facts["names"] = sorted(facts["names"] + [path])
            continue
        if info.type == tarfile.CHRTYPE and (info.devmajor, info.devminor) == (0, 0):
            tree[path] = {"type": info.type, "names": [path]}
            continue
        data = tar.extractfile(info).read() if info.type == tarfile.REGTYPE else b""
        xattrs = {k.removeprefix("SCHILY.xattr."): v for k, v in info.pax_headers.items() if k.startswith("SCHILY.xattr.user.")}
        first[info.name] = tree[path] = {
            "type": info.type, "mode": info.mode, "uid": info.uid, "gid": info.gid, "mtime": int(info.mtime), "target": info.linkname,
            "size": info.size, "sha256": sha256(data), "xattrs": xattrs, "names": [path]}
    return found, records


def difference(is_, should):
    """None, or in words the first difference between two trees."""
    for path in sorted(is_.keys() | should.keys()):
        a, b = is_.get(path), should.get(path)
        if a is None or b is None:
            return f"{path} {'is missing' if a is None else 'should not be there'}"
        if a != b:
            return f"{path}: " + ", ".join(f"{k} is {a.get(k)!r}, not {b.get(k)!r}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k))
    return None
