//! A trace instance of our own in the kernel, removed afterwards.

use crate::recording::Source;
use rustix::fs::OFlags;
use rustix::mount::MountAttrFlags;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use wardian_sys::mount;

/// The usual mount points; the second one is that of kernels before 4.1, and distributions still provide it.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const INSTANCES: &str = "instances";
const PREFIX: &str = "wardian-";
/// Buffer size per CPU. It holds a second of 4-KiB writes with their stacks.
const BUFFER_KB: &str = "2048";

/// System calls that wait for the disk, or whose return does. All are rare.
const CALLS: &[&str] =
    &["sync", "syncfs", "fsync", "fdatasync", "sync_file_range", "msync", "umount", "mount"];

/// Events that there may be too many of to read them all.
const MANY: &[&str] =
    &["block/block_bio_queue", "writeback/writeback_single_inode", "writeback/writeback_dirty_inode_enqueue"];
/// The most threads whose next system call is traced: the filter must fit into a page.
const FOLLOWED_MAX: usize = 64;

/// The watched devices, by the kernel's numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Devices whose requests are traced: (major, minor).
    pub(crate) devices: Vec<(u32, u32)>,
    /// The device number of the superblock.
    pub(crate) superblock: (u32, u32),
    /// The name of the superblock's backing device info, if it belongs to a disk.
    pub(crate) bdi: Option<String>,
}

impl Filter {
    /// Trace filter for writes to the devices, and discards (Documentation/trace/events.rst).
    fn bio(&self) -> String {
        let number = |(major, minor): &(u32, u32)| format!("dev == {}", (major << 20) | minor);
        let devices: Vec<String> = self.devices.iter().map(number).collect();
        format!("({}) && (rwbs ~ \"*W*\" || rwbs ~ \"*D*\")", devices.join(" || "))
    }

    /// Trace filter for writes whose stack is informative: none of the journal's threads, and of kernel workers only
    /// log writes. A flusher's cause is known from its reason, and the stacks of all its writes would cost too much.
    /// All discards have one: only their stacks tell their cause.
    fn stack(&self) -> String {
        let write = "!(comm ~ \"jbd2/*\") && (!(comm ~ \"kworker*\") || rwbs ~ \"*SM*\")";
        format!("{} && (rwbs ~ \"*D*\" || ({write}))", self.bio())
    }
}

/// The directory of tracefs.
#[derive(Debug)]
struct Place {
    dir: PathBuf,
    /// A detached mount of our own where tracefs is not mounted: invisible to others, and gone once it is dropped.
    _mount: Option<OwnedFd>,
}

impl Place {
    /// Finds tracefs. A mount that exists is preferred: before Linux 6.0 another mount of tracefs resets the owner
    /// and mode of that one.
    fn find() -> Result<Self, mount::Error> {
        if let Some(dir) = PLACES.iter().map(PathBuf::from).find(|dir| dir.join(INSTANCES).is_dir()) {
            return Ok(Self { dir, _mount: None });
        }
        let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = mount::fs_mount("tracefs", &[], &[], attrs)?;
        Ok(Self { dir: format!("/proc/self/fd/{}", mount.as_raw_fd()).into(), _mount: Some(mount) })
    }

    fn instance(&self, name: &str) -> PathBuf {
        self.dir.join(INSTANCES).join(name)
    }

    /// Names of the instances of recorders that have ended.
    fn left_over(&self) -> Vec<String> {
        let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
        let dead =
            |name: &String| pid_of(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        let entries = fs::read_dir(self.dir.join(INSTANCES));
        entries.into_iter().flatten().flatten().filter_map(name).filter(dead).collect()
    }

    fn sweep(&self) {
        for name in self.left_over() {
            remove(&self.instance(&name));
        }
    }
}

/// A trace instance; removed when dropped.
#[derive(Debug)]
pub(crate) struct Instance {
    dir: PathBuf,
    pipe: Option<File>,
    /// The mount that `dir` is in.
    _place: Place,
}

impl Instance {
    /// Creates an instance and starts tracing. Adds available and missing events to `sources`.
    pub(crate) fn start(filter: &Filter, sources: &mut Vec<Source>) -> Option<Self> {
        match Self::make() {
            Ok(mut instance) => {
                sources.push(Source { name: "tracefs".into(), available: true, note: None });
                instance.listen(filter, sources);
                let pipe = OpenOptions::new()
                    .read(true)
                    .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                    .open(instance.dir.join("trace_pipe"));
                match pipe {
                    Ok(pipe) => instance.pipe = Some(pipe),
                    Err(error) => {
                        sources.push(missing("trace_pipe", &error.to_string()));
                        return None;
                    }
                }
                Some(instance)
            }
            Err(note) => {
                sources.push(missing("tracefs", &note));
                None
            }
        }
    }

    fn make() -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let place =
            Place::find().map_err(|error| format!("{error}; is it in this kernel (CONFIG_TRACING)?"))?;
        place.sweep();
        let name = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = place.instance(&name);
        fs::create_dir(&dir).map_err(|error| format!("make {}: {error}", dir.display()))?;
        let instance = Self { dir, pipe: None, _place: place };
        let set = |file: &str, value: &str| {
            fs::write(instance.dir.join(file), value).map_err(|e| format!("set {file} to {value}: {e}"))
        };
        set("trace_clock", "mono")?;
        set("buffer_size_kb", BUFFER_KB)?;
        Ok(instance)
    }

    fn listen(&self, filter: &Filter, sources: &mut Vec<Source>) {
        let mut enable = |event: &str, filter: Option<&str>, needed: bool| {
            let name = event.replace('/', ":");
            match self.enable(event, filter) {
                Ok(()) => {
                    sources.push(Source { name, available: true, note: None });
                    true
                }
                Err(error) => {
                    if needed {
                        sources.push(missing(&name, &error.to_string()));
                    }
                    false
                }
            }
        };
        let bdi = filter.bdi.as_ref().map(|name| format!("name == \"{name}\""));
        for event in ["queue", "exec", "start", "written", "single_inode"] {
            enable(&format!("writeback/writeback_{event}"), bdi.as_deref(), true);
        }
        let (major, minor) = filter.superblock;
        let dirty = format!("dev == {}", (major << 20) | minor);
        enable("writeback/writeback_dirty_inode_enqueue", Some(&dirty), true);
        if !filter.devices.is_empty() {
            enable("block/block_bio_queue", Some(&filter.bio()), true);
        }
        // Needed to tell which writers descend from the watched threads; without it that stays unknown.
        enable("sched/sched_process_fork", None, false);
        // The exact end of what a thread waited in last.
        enable("sched/sched_process_exit", None, false);
        for call in CALLS {
            enable(&format!("syscalls/sys_enter_{call}"), None, true);
            enable(&format!("syscalls/sys_exit_{call}"), None, true);
        }
        let queue = bdi.map_or("stacktrace".to_owned(), |bdi| format!("stacktrace if {bdi}"));
        let bio = format!("stacktrace if {}", filter.stack());
        for (event, trigger) in [("writeback/writeback_queue", queue), ("block/block_bio_queue", bio)] {
            let file = self.dir.join("events").join(event).join("trigger");
            let name = format!("stacks of {}", event.replace('/', ":"));
            match OpenOptions::new().append(true).open(file).and_then(|mut f| {
                use std::io::Write as _;
                f.write_all(trigger.as_bytes())
            }) {
                Ok(()) => sources.push(Source { name, available: true, note: None }),
                Err(error) => sources.push(missing(&name, &error.to_string())),
            }
        }
    }

    /// Traces the next system call of these threads alone, whichever it is.
    pub(crate) fn follow(&self, threads: &BTreeSet<u32>) {
        let dir = self.dir.join("events/raw_syscalls/sys_enter");
        let is = |thread: &u32| format!("common_pid == {thread}");
        let filter: Vec<String> = threads.iter().take(FOLLOWED_MAX).map(is).collect();
        // Without this event the ends of their waits are as exact as the samples are.
        let followed = !filter.is_empty() && fs::write(dir.join("filter"), filter.join(" || ")).is_ok();
        let _ = fs::write(dir.join("enable"), if followed { "1" } else { "0" });
    }

    /// Traces every write, or none.
    pub(crate) fn writes(&self, on: bool) {
        for event in MANY {
            let _ = fs::write(self.dir.join("events").join(event).join("enable"), if on { "1" } else { "0" });
        }
    }

    fn enable(&self, event: &str, filter: Option<&str>) -> io::Result<()> {
        let dir = self.dir.join("events").join(event);
        if let Some(filter) = filter {
            fs::write(dir.join("filter"), filter)?;
        }
        fs::write(dir.join("enable"), "1")
    }

    /// Appends the available text to `text`. The kernel returns at most a page at a time.
    pub(crate) fn read(&mut self, text: &mut Vec<u8>) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        let mut buffer = [0; 65536];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => text.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Stops recording; what was recorded can still be read.
    pub(crate) fn stop(&self) {
        let _ = fs::write(self.dir.join("tracing_on"), "0");
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.stop();
        self.pipe = None;
        remove(&self.dir);
    }
}

fn missing(name: &str, note: &str) -> Source {
    Source { name: name.to_owned(), available: false, note: Some(note.to_owned()) }
}

/// Removes an instance. Its events are disabled first: the kernel refuses while one is enabled, or a reader has the
/// instance open.
fn remove(dir: &Path) {
    let _ = fs::write(dir.join("events/enable"), "0");
    for _ in 0..20 {
        match fs::remove_dir(dir) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            _ => return,
        }
    }
}

/// Names of the instances of recorders that were killed.
pub fn left_over() -> Vec<String> {
    Place::find().map(|place| place.left_over()).unwrap_or_default()
}

/// Removes these instances.
pub fn sweep() {
    if let Ok(place) = Place::find() {
        place.sweep();
    }
}

/// The pid of the process that made the instance of this name.
fn pid_of(name: &str) -> Option<u32> {
    let (pid, count) = name.strip_prefix(PREFIX)?.split_once('-')?;
    count.parse::<u32>().ok()?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(pid_of("wardian-12-3"), Some(12));
        for other in ["wardian-12", "wardian-x-3", "other-12-3", "wardian-probe", "wardian-1-2-3"] {
            assert_eq!(pid_of(other), None, "{other}");
        }
    }

    #[test]
    fn filters() {
        let filter = Filter { devices: vec![(7, 2), (254, 0)], superblock: (7, 2), bdi: None };
        let writes = "(dev == 7340034 || dev == 266338304) && (rwbs ~ \"*W*\" || rwbs ~ \"*D*\")";
        assert_eq!(filter.bio(), writes);
        assert!(filter.stack().starts_with(writes));
    }
}
