//! `wardian lab bisect`: one guest that is measured, one that is interrupted, one that never boots, and what is refused
//! before any boots.

use crate::cli::Said;
use crate::support::{STUCK, WARDIAN, base, ended_within, names, signal};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wardian_needs::needs;

/// Time for a boot and a small experiment without KVM, on a busy host.
const PATIENCE: Duration = Duration::from_secs(600);

struct Bisection {
    base: tempfile::TempDir,
}

impl Bisection {
    fn new() -> Self {
        let base = base();
        for name in ["cache", "scratch"] {
            fs::create_dir(base.path().join(name)).unwrap();
        }
        Self { base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(WARDIAN);
        command.args(["lab", "bisect", "--cache"]).arg(self.path("cache"));
        command.arg("--scratch").arg(self.path("scratch")).arg("--json").arg(self.path("report")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("report")).unwrap()).unwrap()
    }

    /// Neither files of a guest nor its process.
    fn nothing_is_left(&self) {
        assert_eq!(names(&self.path("scratch")), Vec::<String>::new());
        let unfinished: Vec<String> =
            names(&self.path("cache")).into_iter().filter(|name| name.contains(".new-")).collect();
        assert_eq!(unfinished, Vec::<String>::new());
        let started = Instant::now();
        while !self.guests().is_empty() {
            assert!(started.elapsed() < STUCK, "{:?}", self.guests());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processes that work in the scratch directory.
    fn guests(&self) -> Vec<PathBuf> {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let directories = processes.filter_map(|process| fs::read_link(process.path().join("cwd")).ok());
        directories.filter(|at| at.starts_with(self.path("scratch"))).collect()
    }

    /// Waits until a kernel writes its log.
    fn until_it_boots(&self, child: &mut Child) {
        let started = Instant::now();
        let logs = || {
            let experiments = fs::read_dir(self.path("scratch")).into_iter().flatten().flatten();
            let guests = experiments.flat_map(|dir| fs::read_dir(dir.path()).into_iter().flatten().flatten());
            guests.map(|dir| fs::metadata(dir.path().join("log")).map_or(0, |log| log.len())).sum::<u64>()
        };
        while logs() == 0 {
            assert!(started.elapsed() < PATIENCE, "it does not boot");
            assert!(child.try_wait().unwrap().is_none(), "it has ended");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_debian_kernel_is_measured_and_a_signal_ends_its_guest() {
    needs!(Root, Guests, AptDownload);
    let bisection = Bisection::new();
    let experiment = ["--", "teardown", "--mounts", "2", "--mb", "10"];
    let said = bisection.run(&[&["--kernels", "6.12", "--runs", "1"][..], &experiment].concat());
    assert_eq!(said.code, Some(0), "{said:?}");
    bisection.nothing_is_left();
    let report = bisection.json();
    assert_eq!((&report["complete"], &report["error"]), (&Value::from(true), &Value::Null), "{report:#}");
    let kernel = &report["kernels"][0];
    assert!(kernel["release"].as_str().unwrap().starts_with("6.12."), "{report:#}");
    assert!(kernel["source"].as_str().unwrap().ends_with(".deb"), "{report:#}");
    let figures = &kernel["runs"][0]["figures"];
    assert!(figures["unmount_max_ms"].as_f64().unwrap() > 0.0, "{report:#}");
    // The unmounts have written what was dirty.
    assert!(figures["unmount_written_bytes"].as_f64().unwrap() >= f64::from(10 << 20), "{report:#}");
    assert!(said.out.contains("unmount_max_ms is") && said.out.contains("50.0 MB/s"), "{said:?}");

    let mut child = bisection.command(&["--kernels", "6.12"]).spawn().unwrap();
    bisection.until_it_boots(&mut child);
    signal(child.id(), Signal::INT);
    assert_eq!(ended_within(&mut child, STUCK).and_then(|status| status.code()), Some(130));
    bisection.nothing_is_left();
    let report = bisection.json();
    assert_eq!(report["complete"], false, "{report:#}");
    assert!(report["error"].as_str().unwrap().contains("interrupted"), "{report:#}");
}

/// The header of an image, and nothing that could be executed.
fn image(path: &Path) {
    let mut image = vec![0; 1 << 20];
    image[0x1f1] = 4;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20c_u16.to_le_bytes());
    // Where an initrd may end: without it QEMU refuses the image.
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    fs::write(path, image).unwrap();
}

#[test]
fn a_kernel_that_does_not_boot_is_told() {
    needs!(Root, Guests);
    let bisection = Bisection::new();
    let dir = bisection.path("kernel");
    fs::create_dir(&dir).unwrap();
    image(&dir.join("vmlinuz"));
    let said = bisection.run(&["--timeout", "5", "--kernels", dir.to_str().unwrap()]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("no kernel could be measured"), "{said:?}");
    bisection.nothing_is_left();
    let report = bisection.json();
    assert_eq!(
        (&report["complete"], &report["kernels"][0]["side"]),
        (&Value::from(false), &Value::from("skipped"))
    );
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_boots() {
    needs!(Root, Guests);
    let bisection = Bisection::new();
    let (empty, random) = (bisection.path("empty"), bisection.path("random"));
    fs::create_dir(&empty).unwrap();
    fs::write(&random, [0xa5; 100_000]).unwrap();
    let (empty, random) = (empty.to_str().unwrap(), random.to_str().unwrap());
    for (args, code, words) in [
        (&["--kernels", empty][..], 1, "no kernel image"),
        (&["--kernels", random], 1, "HdrS"),
        (&["--kernels", "/no/such/kernel"], 1, "is no kernel"),
        (&["--kernels", "bash"], 1, "is no kernel"),
        (&["--kernels", "1,1"], 1, "twice"),
        (&["--kernels", "1", "--slow-above", "1s"], 1, "two kernels"),
        (&["--kernels", "1", "--jobs", "2", "--disk-bps", "unlimited"], 1, "--disk-bps"),
        (&["--kernels", "1", "--slow-above", "soon"], 2, "no duration"),
        (&["--kernels", "1", "--disk-bps", "fast"], 2, "no number of bytes"),
        (&["--kernels", "1", "--", "scale"], 2, "no experiment"),
        (&["--kernels", "1", "--", "teardown", "--fs", "/"], 2, "--fs is set"),
        (&["--kernels", "1", "--", "teardown", "--mounts", "many"], 2, "--mounts"),
        (&[], 2, "--kernels"),
    ] {
        let said = bisection.run(args);
        assert!(said.code == Some(code) && said.err.contains(words), "{args:?}: {said:?}");
        bisection.nothing_is_left();
    }
    let mut without = bisection.command(&["--kernels", empty]);
    let said: Said = without.env("PATH", bisection.path("empty")).output().unwrap().into();
    assert!(said.code == Some(1) && said.err.contains("apt-get install qemu-system-x86"), "{said:?}");
}
