//! Pressure stall information (Documentation/accounting/psi.rst): the share of time in which some, or all, tasks
//! waited for a resource.

use std::io;

/// The contents of a file of `/proc/pressure`, or of `<resource>.pressure` of a cgroup. Averages are percent of wall
/// time, over the last 10, 60 and 300 seconds; totals are microseconds since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    /// At least one task waited.
    pub some: Stall,
    /// All non-idle tasks waited at the same time; zero where the kernel does not report it (cpu).
    pub full: Stall,
}

/// One line of such a file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Percent, over 10 s.
    pub avg10: f64,
    /// Percent, over 60 s.
    pub avg60: f64,
    /// Percent, over 300 s.
    pub avg300: f64,
    /// Microseconds since boot.
    pub total_us: u64,
}

/// Parses such a file; `None` if it has no valid `some` line. Unknown lines and fields are skipped.
pub fn parse_psi(text: &str) -> Option<Psi> {
    let mut psi = Psi { some: stall(text, "some")?, ..Psi::default() };
    if let Some(full) = stall(text, "full") {
        psi.full = full;
    }
    Some(psi)
}

fn stall(text: &str, kind: &str) -> Option<Stall> {
    let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
    let field = |name: &str| {
        line.split_ascii_whitespace().find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    let percent = |name: &str| {
        field(name)?.parse::<f64>().ok().filter(|value| value.is_finite() && (0.0..=100.0).contains(value))
    };
    Some(Stall {
        avg10: percent("avg10")?,
        avg60: percent("avg60")?,
        avg300: percent("avg300")?,
        total_us: field("total")?.parse().ok()?,
    })
}

/// Reads the pressure on the host's disks; `None` on a kernel without pressure stall information (not built in, or
/// not switched on with `psi=1`).
pub fn io() -> io::Result<Option<Psi>> {
    read("/proc/pressure/io")
}

/// Reads the pressure on the host's memory, like [`io`].
pub fn memory() -> io::Result<Option<Psi>> {
    read("/proc/pressure/memory")
}

fn read(path: &str) -> io::Result<Option<Psi>> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse_psi(&text).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into()),
        // EOPNOTSUPP: PSI is built in but switched off.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::EOPNOTSUPP) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes() {
        let text = "some avg10=1.50 avg60=0.29 avg300=0.06 total=1234567\n\
                    full avg10=0.75 avg60=0.10 avg300=0.02 total=99\n";
        let psi = parse_psi(text).unwrap();
        assert_eq!(psi.some, Stall { avg10: 1.5, avg60: 0.29, avg300: 0.06, total_us: 1_234_567 });
        assert_eq!((psi.full.avg10, psi.full.total_us), (0.75, 99));
        let cpu = "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        assert_eq!(parse_psi(cpu).unwrap().full, Stall::default());
    }

    #[test]
    fn what_it_never_writes() {
        for text in [
            "",
            "some",
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=5",
            "some avg10=0.00 avg60=0.00 total=5",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=-5",
            "some avg10=nan avg60=0.00 avg300=0.00 total=5",
            "some avg10=101 avg60=0.00 avg300=0.00 total=5",
            "something avg10=0.00 avg60=0.00 avg300=0.00 total=5",
        ] {
            assert_eq!(parse_psi(text), None, "{text}");
        }
    }

    #[test]
    fn this_kernel() {
        io().unwrap();
        memory().unwrap();
    }
}
