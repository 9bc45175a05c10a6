//! Failpoints: named places at which a test kills the process as `kill -9` does, or delays a thread as a slow disk
//! does. They exist in the crate's own tests only.

/// Ends the process here if the environment names this point; with `=wait` after its name the thread waits for a minute.
macro_rules! fail_point {
    ($name:literal) => {
        #[cfg(test)]
        $crate::fail::at($name);
    };
}
pub(crate) use fail_point;

/// The environment variable that names the point.
#[cfg(test)]
pub(crate) const VARIABLE: &str = "WARDIAN_STORE_FAILPOINT";

#[cfg(test)]
pub(crate) fn at(name: &str) {
    let Some(wanted) = std::env::var_os(VARIABLE) else { return };
    if wanted == *format!("{name}=wait") {
        std::thread::sleep(std::time::Duration::from_secs(60));
    } else if wanted == name {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
