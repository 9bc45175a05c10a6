//! Failpoints: named places at which a test ends the process as `kill -9` would. They exist in the crate's own tests
//! only.

/// Ends the process here if the environment names this point.
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
    if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
