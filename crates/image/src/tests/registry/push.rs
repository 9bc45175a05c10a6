//! Images pushed to Debian's `docker-registry`, and pulled again.

use std::os::fd::OwnedFd;

use wardian_needs::needs;

use super::super::tls::authority;
use super::real::{Registry, pull};
use super::*;
use crate::export::{Compression, Format, Progress, Pushed, Pushing, Target, export, push};
use crate::registry::{Pusher, Sent};

/// An image that a store has: its documents, and its unpacked layers.
struct Kept {
    client: Client,
    image: Image,
}

impl Kept {
    fn of(client: Client, image: Image) -> Self {
        client.unpack(&image, &Watch::default()).unwrap();
        Self { client, image }
    }

    fn pulled(name: &ImageName) -> Self {
        let client = Client::new();
        let image = client.open(name.clone(), vec![(Endpoint::of(name), None)]).unwrap();
        Self::of(client, image)
    }

    fn opened(source: &Source) -> Self {
        let client = Client::new();
        let image = source.open(&client.remote).unwrap();
        Self::of(client, image)
    }

    fn push_by(
        &self,
        pusher: &Pusher,
        puller: Option<&Puller>,
        opened: Option<&Image>,
        compression: Compression,
    ) -> Result<Pushed, Error> {
        let dir: OwnedFd = File::open(self.client.cage.root()).unwrap().into();
        let chain_ids: Vec<_> = self.image.layers.iter().map(|layer| layer.chain_id.clone()).collect();
        let progress = Progress::default();
        let pushing = Pushing {
            layers: &[dir.as_fd()],
            chain_ids: &chain_ids,
            manifest: self.image.manifest.as_deref(),
            config: self.image.config_json.as_deref(),
            puller,
            opened,
            compression,
            scratch: &tempfile::tempfile,
            in_place: &|| true,
        };
        let pushed = push(&pushing, pusher, &progress, &Watch::default())?;
        let (done, total) = progress.bytes();
        assert!(done == total && total > 0, "{done} of {total}");
        Ok(pushed)
    }

    fn push(&self, to: &ImageName, puller: Option<&Puller>, opened: Option<&Image>) -> Pushed {
        let pusher = Pusher::new(&self.client.remote, to, Endpoint::of(to), None, None).unwrap();
        self.push_by(&pusher, puller, opened, Compression::Gzip).unwrap()
    }

    fn puller(&self, name: &ImageName) -> Puller {
        Puller::new(&self.client.remote, name.clone(), vec![(Endpoint::of(name), None)]).unwrap()
    }
}

/// How the registry came to have the only layer, and whether it was exported.
fn how(pushed: &Pushed) -> (Sent, bool) {
    (pushed.layers[0].how, pushed.layers[0].exported)
}

#[test]
fn as_it_was_pulled() {
    needs!(Registry);
    let (first, second) = (Registry::start(None, false), Registry::start(None, false));
    for (tag, made) in [("docker", Made::new("a", 3 << 20, DOCKER)), ("oci", Made::new("a", 10, OCI))] {
        first.push("some/where/r", tag, &made);
        let from = first.name("some/where/r", tag);
        let kept = Kept::pulled(&from);
        let puller = kept.puller(&from);
        // The blob goes from one registry to the other.
        let to = second.name("other/r", tag);
        let pushed = kept.push(&to, Some(&puller), None);
        assert_eq!((pushed.digest.clone(), how(&pushed)), (made.digest(), (Sent::Sent, false)));
        let (image, text) = pull(&Client::new(), to.clone(), None).unwrap();
        assert_eq!((image.digest, text.as_str()), (Some(made.digest()), "content"));
        assert_eq!(image.manifest.as_ref(), Some(&made.manifest));
        assert_eq!(how(&kept.push(&to, None, None)), (Sent::There, false));
        // Within one registry it is mounted, and needs not be read.
        let to = first.name("other/r", tag);
        let mounting =
            Pusher::new(&kept.client.remote, &to, Endpoint::of(&to), None, Some("some/where/r")).unwrap();
        let pushed = kept.push_by(&mounting, None, None, Compression::Gzip).unwrap();
        assert_eq!((pushed.digest.clone(), how(&pushed)), (made.digest(), (Sent::Mounted, false)));
        assert_eq!(pull(&Client::new(), to, None).unwrap().0.digest, Some(made.digest()));
    }
}

#[test]
fn as_exported() {
    needs!(Registry);
    let registry = Registry::start(None, false);
    let made = Made::new("a", 3 << 20, DOCKER);
    registry.push("r", "from", &made);
    let kept = Kept::pulled(&registry.name("r", "from"));
    let gone = Kept::puller(&kept, &registry.name("gone", "from"));
    for (tag, compression, puller) in [
        ("gzip", Compression::Gzip, None),
        ("zstd", Compression::Zstd, Some(&gone)),
        ("again", Compression::Gzip, None),
    ] {
        let to = registry.name("other", tag);
        let pusher = Pusher::new(&kept.client.remote, &to, Endpoint::of(&to), None, None).unwrap();
        let pushed = kept.push_by(&pusher, puller, None, compression).unwrap();
        let sent = if tag == "again" { Sent::There } else { Sent::Sent };
        assert_eq!(how(&pushed), (sent, true), "{tag}");
        let client = Client::new();
        let (image, text) = pull(&client, to, None).unwrap();
        assert_eq!((image.digest, text.as_str()), (Some(pushed.digest), "content"));
        assert_eq!(image.id, pushed.config.as_hex());
        assert_eq!(image.config.env, ["A=b"]);
        assert_eq!(std::fs::read(client.cage.root().join("noise")).unwrap().len(), 3 << 20);
    }
}

#[test]
fn of_layouts_and_archives() {
    needs!(Registry);
    let registry = Registry::start(None, false);
    let dir = tempfile::tempdir().unwrap();
    let made = Made::new("a", 500_000, OCI);
    registry.push("r", "from", &made);
    let kept = Kept::pulled(&registry.name("r", "from"));
    let exported = |format: Format, name: &str| {
        let path = dir.path().join(name);
        let target = Target {
            format,
            path: path.clone(),
            compression: Compression::Zstd,
            overwrite: false,
            keep_privileges: false,
        };
        let root = File::open(kept.client.cage.root()).unwrap();
        let names = ["x:y".to_owned()];
        export(&[root.as_fd()], kept.image.config_json.as_deref(), &names, &target, &Watch::default())
            .unwrap();
        path
    };
    for (format, name) in
        [(Format::Oci, "layout"), (Format::OciArchive, "oci.tar"), (Format::DockerArchive, "docker.tar")]
    {
        let path = exported(format, name);
        let source = Source::detect(&path).unwrap();
        let there = Kept::opened(&source);
        let to = registry.name("other", &name.replace('.', "-"));
        let pushed = there.push(&to, None, Some(&there.image));
        let (image, text) = pull(&Client::new(), to, None).unwrap();
        assert_eq!((image.digest.as_ref(), text.as_str()), (Some(&pushed.digest), "content"));
        // Also the image's id stays, as the uncompressed layer is the same.
        assert_eq!(image.id, there.image.id);
        match format {
            Format::DockerArchive => assert!(pushed.layers[0].exported),
            _ => assert_eq!(image.manifest, there.image.manifest),
        }
    }
    // A blob that is another one by now, and of the same size.
    let path = exported(Format::Oci, "changed");
    let there = Kept::opened(&Source::detect(&path).unwrap());
    let pushed = there.push(&registry.name("third", "a"), None, Some(&there.image));
    assert!(!pushed.layers[0].exported);
    let blob = path.join("blobs/sha256").join(pushed.layers[0].digest.as_hex());
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let pushed = there.push(&registry.name("fourth", "a"), None, Some(&there.image));
    assert_eq!(how(&pushed), (Sent::Sent, true));
    assert_eq!(pull(&Client::new(), registry.name("fourth", "a"), None).unwrap().1, "content");
}

#[test]
fn with_passwords_and_tls() {
    needs!(Registry);
    let known = authority("known");
    let source = Registry::start(None, false);
    let made = Made::new("a", 100_000, OCI);
    source.push("r", "latest", &made);
    let kept = Kept::pulled(&source.name("r", "latest"));
    let puller = kept.puller(&source.name("r", "latest"));
    let registry = Registry::start(Some(&known), true);
    let (client, _certificates) = Client::trusting(&known, &[&registry.host], settings());
    let to = registry.name("r", "pushed");
    let push = |password: Option<&str>| {
        let login = password.map(|password| Login::Basic { user: "user".into(), password: password.into() });
        let pusher = Pusher::new(&client.remote, &to, Endpoint::of(&to), login, None).unwrap();
        kept.push_by(&pusher, Some(&puller), None, Compression::Gzip)
    };
    for password in [None, Some("SECRET")] {
        let parts = [format!("pushing {to}"), "does not let you push".into(), "image login".into()];
        failed(&client, push(password), &parts.each_ref().map(String::as_str));
    }
    assert_eq!(push(Some("pass word")).unwrap().digest, made.digest());
    let login = Login::Basic { user: "user".into(), password: "pass word".into() };
    assert_eq!(pull(&client, to, Some(login)).unwrap().0.digest, Some(made.digest()));
}

/// The layers of an image whose manifest does not belong to them are exported, and foreign ones are refused.
#[test]
fn other_manifests() {
    needs!(Registry);
    let registry = Registry::start(None, false);
    let made = Made::new("a", 1000, OCI);
    registry.push("r", "from", &made);
    let from = registry.name("r", "from");
    let mut kept = Kept::pulled(&from);
    let puller = kept.puller(&from);
    kept.image.layers[0].chain_id = Digest::of(b"the state of a file").as_hex().to_owned();
    let pushed = kept.push(&registry.name("other", "a"), Some(&puller), None);
    assert_eq!(how(&pushed), (Sent::Sent, true));
    let mut kept = Kept::pulled(&from);
    let foreign = String::from_utf8(made.manifest.clone())
        .unwrap()
        .replace("layer.v1.tar", "layer.nondistributable.v1.tar");
    kept.image.manifest = Some(foreign.into_bytes());
    let to = registry.name("other", "b");
    let pusher = Pusher::new(&kept.client.remote, &to, Endpoint::of(&to), None, None).unwrap();
    let result = kept.push_by(&pusher, Some(&puller), None, Compression::Gzip);
    failed(&kept.client, result, &["is a foreign layer"]);
}

/// What a registry gives for a blob is sent to another one only if it is that blob: it may have led to a server that only
/// this host can reach.
#[test]
fn of_another_blob_nothing_is_sent() {
    let made = Made::new("a", 3 << 20, OCI);
    let from = Files::with(&made).serve();
    let name = name(&from.host());
    let kept = Kept::pulled(&name);
    let mut other = Files::with(&made);
    let inside = vec![b's'; made.blob.len()];
    other.0.insert(format!("/v2/r/blobs/{}", Digest::of(&made.blob)), Reply::of(&inside));
    let other = other.serve();
    let to_name = ImageName::parse(&format!("{}/r:latest", other.host())).unwrap();
    let puller = kept.puller(&to_name);
    let taking = Server::by(|requests| super::sending::taking(requests.last().unwrap()), None);
    let to = ImageName::parse(&format!("{}/r:new", taking.host())).unwrap();
    let pushed = kept.push(&to, Some(&puller), None);
    assert_eq!(how(&pushed), (Sent::Sent, true));
    assert!(taking.requests().iter().all(|request| !request.contains("ssss")));
}
