//! `create` of the program under the name `grootfs`: limits, and layers on servers.

use crate::grootfs::{World, inside, root};
use crate::grootfs_images::{Layer, layout, tar};
use crate::support::{names, noise};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use wardian_needs::needs;

const MIB: usize = 1 << 20;

/// Whether so many bytes can be written to a new file in the directory.
fn write(dir: &Path, name: &str, mib: usize) -> bool {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(dir.join(name), flags, Mode::RUSR | Mode::WUSR).unwrap();
    // The space is taken when it is written, not when the page cache is.
    fs::File::from(file).write_all(&noise(mib * MIB)).is_ok()
}

fn end(world: World, ids: &[&str]) {
    for id in ids {
        assert_eq!(world.say(&format!("delete {id}")), format!("Image {id} deleted\n"));
    }
    world.until_clean();
    assert_eq!(world.mounts(), Vec::<String>::new());
    world.finish();
}

#[test]
fn limits_bound_what_is_written_with_the_image_or_without_it() {
    needs!(Loop);
    let world = World::new();
    world.say("init-store");
    let image = world.path("five.tar");
    fs::write(&image, tar(&[("five", &noise(5 * MIB))])).unwrap();
    let image = image.display();
    let create = |args: &str| inside(&world, &root(&world.create(args)));
    let limit = format!("--disk-limit-size-bytes {}", 10 * MIB);

    let with = create(&format!("{limit} {image} with"));
    assert!(write(&with, "four", 4) && !write(&with, "two", 2));
    let without = create(&format!("{limit} --exclude-image-from-quota {image} without"));
    assert!(write(&without, "six", 6) && !write(&without, "five-more", 5));

    // The same by the configuration.
    let config = |name: &str, more: &str| {
        let text = format!(
            "store: {}\ncreate:\n  disk_limit_size_bytes: {}\n{more}",
            world.path("st").display(),
            10 * MIB
        );
        fs::write(world.path(&format!("{name}.yml")), text).unwrap();
        let said = world.shell(&format!("grootfs --config {name}.yml create {image} {name}"));
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
        inside(&world, &root(&serde_json::from_str(&said.out).unwrap()))
    };
    let by_file = config("file", "");
    assert!(write(&by_file, "four", 4) && !write(&by_file, "two", 2));
    let excluded = config("excluded", "  exclude_image_from_quota: true\n");
    assert!(write(&excluded, "six", 6) && !write(&excluded, "five-more", 5));
    // Nobody's limit is another one's.
    let free = create(&format!("{image} free"));
    assert!(write(&free, "twenty", 20));
    // Those that are there are no leaks.
    let leaks = world.shell("ln -s grootfs bin/wardian && exec bin/wardian doctor --leaks");
    let store = world.path("st").display().to_string();
    assert!(!leaks.out.contains(&store) && !leaks.err.contains(&store), "{leaks:?}");
    end(world, &["with", "without", "file", "excluded", "free"]);
}

/// The caller mounts it, from directories that the user of the mapping's root may write to.
#[test]
fn a_limit_holds_without_a_mount() {
    needs!(Loop);
    for mapping in ["", "--uid-mapping 0:100000:1 --gid-mapping 0:100000:1"] {
        let world = World::new();
        world.say(&format!("init-store {mapping}"));
        let image = world.path("five.tar");
        fs::write(&image, tar(&[("five", &noise(5 * MIB))])).unwrap();
        let limit = format!("--disk-limit-size-bytes {}", 20 * MIB);
        let answer = world.create(&format!("--without-mount {limit} {} one", image.display()));
        let (options, rootfs) = (answer["mounts"][0]["options"][0].as_str().unwrap(), root(&answer));
        let mounted = world.shell(&format!("mount -t overlay overlay -o '{options}' {}", rootfs.display()));
        assert_eq!(mounted.code, Some(0), "{mounted:?}");
        let dir = inside(&world, &rootfs);
        assert!(write(&dir, "ten", 10) && !write(&dir, "ten-more", 10));
        let unmounted = world.shell(&format!("umount {}", rootfs.display()));
        assert_eq!(unmounted.code, Some(0), "{unmounted:?}");
        end(world, &["one"]);
    }
}

#[test]
fn stats_tell_the_kernels_figures_of_a_limited_one() {
    needs!(Loop);
    let world = World::new();
    world.say("init-store");
    let image = world.path("five.tar");
    fs::write(&image, tar(&[("five", &noise(5 * MIB))])).unwrap();
    let limit = format!("--disk-limit-size-bytes {}", 50 * MIB);
    let path = inside(&world, &root(&world.create(&format!("{limit} {} one", image.display()))));
    assert!(write(&path, "four", 4));
    let figures = |what: &str| -> [u64; 4] {
        let stats: Value = serde_json::from_str(&world.say(&format!("stats {what}"))).unwrap();
        let names = ["exclusive_bytes_used", "total_bytes_used", "quota_size_bytes", "committed_space_bytes"];
        names.map(|name| stats["disk_usage"][name].as_u64().unwrap())
    };
    let [exclusive, total, quota, committed] = figures("one");
    let mib = |count: usize| (count * MIB) as u64;
    assert!((mib(4)..mib(4) + 300_000).contains(&exclusive), "{exclusive}");
    assert_eq!((total, quota, committed), (exclusive + mib(5), mib(45), mib(50)));
    let by_path = figures(world.path("st/images/one").to_str().unwrap());
    assert_eq!(by_path[1..], [total, quota, committed]);
    end(world, &["one"]);
}

#[test]
fn a_limit_below_the_layers_is_refused_before_or_while_they_are_unpacked() {
    let world = World::new();
    world.say("init-store");
    let layers =
        || vec![Layer::gzip(&tar(&[("one", &noise(MIB))])), Layer::gzip(&tar(&[("two", &noise(MIB))]))];
    layout(&world.path("large"), &layers(), &[], None);
    // Compressed to nearly nothing.
    layout(&world.path("zeros"), &[Layer::gzip(&tar(&[("zeros", &vec![0; MIB])]))], &[], None);
    let uri = |name: &str| format!("oci://{}", world.path(name).display());
    let limit = format!("--disk-limit-size-bytes {}", MIB / 2);
    let said = world.fail(&format!("create {limit} {} a", uri("large")));
    assert!(
        said.starts_with("pulling the image: layers exceed disk quota ") && said.contains("/524288 bytes"),
        "{said}"
    );
    let said = world.fail(&format!("create {limit} {} b", uri("zeros")));
    assert!(said.contains("uncompressed layer size exceeds quota"), "{said}");
    assert_eq!(names(&world.path("st/layers")), Vec::<String>::new());
    assert_eq!(world.say("list"), "Store empty\n");
    needs!(Loop);
    for (n, name) in ["large", "zeros"].iter().enumerate() {
        world.create(&format!("{limit} --exclude-image-from-quota {} x{n}", uri(name)));
    }
    end(world, &["x0", "x1"]);
}

/// Answers GETs over TLS to clients with a certificate of the authority, until its thread is forgotten.
fn serve(config: rustls::ServerConfig, blob: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, config) = (listener.local_addr().unwrap().port(), Arc::new(config));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tls = rustls::StreamOwned::new(tls, stream);
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && tls.read(&mut byte).is_ok_and(|count| count == 1) {
                request.push(byte[0]);
            }
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", blob.len());
            let _ = tls.write_all(head.as_bytes()).and_then(|()| tls.write_all(&blob));
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    });
    port
}

#[test]
fn a_layer_on_a_server_is_fetched_with_a_certificate() {
    let world = World::new();
    world.say("init-store");
    let authority = || {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let issue = |by: &CertifiedIssuer<'static, KeyPair>| {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, by).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (servers, clients) = (authority(), authority());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(clients.der().clone()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let (certificate, key) = issue(&servers);
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let layer = Layer::gzip(&tar(&[("remote", b"from afar")]));
    let port = serve(config, layer.blob().to_vec());
    layout(&world.path("remote"), &[layer.at(&format!("https://localhost:{port}/blob"))], &[], None);

    let certs = world.path("certs");
    fs::create_dir(&certs).unwrap();
    let text = |certs: &Path, hosts: &str| {
        let create =
            format!("remote_layer_client_certificates_path: {}\n  layer_hosts: [{hosts}]", certs.display());
        format!("store: {}\ncreate:\n  {create}\n", world.path("st").display())
    };
    fs::write(world.path("c.yml"), text(&certs, &format!("\"localhost:{port}\""))).unwrap();
    fs::write(world.path("no-hosts.yml"), text(&certs, "")).unwrap();
    let create = |config: &str, id: &str| {
        let uri = world.path("remote").display().to_string();
        world.shell(&format!("grootfs --config {config} create oci://{uri} {id}"))
    };
    // A server of an unknown authority, then one that knows no such client.
    let refused = |said: &crate::cli::Said| said.code == Some(1) && said.out.starts_with("pulling the image");
    let said = create("c.yml", "stranger");
    assert!(refused(&said), "{said:?}");
    fs::write(certs.join("cacert.crt"), servers.pem()).unwrap();
    let said = create("c.yml", "nobody");
    assert!(refused(&said), "{said:?}");
    let (certificate, key) = issue(&clients);
    fs::write(certs.join("cert.cert"), certificate).unwrap();
    fs::write(certs.join("cert.key"), key).unwrap();
    // Where it is fetched from is for the operator to allow.
    let said = create("no-hosts.yml", "forbidden");
    assert!(refused(&said), "{said:?}");
    assert_eq!(names(&world.path("st/layers")), Vec::<String>::new());
    let said = create("c.yml", "known");
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    let path = inside(&world, &root(&serde_json::from_str(&said.out).unwrap()));
    assert_eq!(fs::read(path.join("remote")).unwrap(), b"from afar");
    end(world, &["known"]);
}
