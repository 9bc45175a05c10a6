//! QEMU: whether it and KVM are there, and the command line of a guest.

use super::children;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Parameters of every kernel. `panic=-1` reboots at once after a panic, and QEMU ends instead (`-no-reboot`).
/// Mitigations would cost time that differs between kernels. The kernel's check of its timer counts ticks during a short
/// delay; on a busy host without KVM too few arrive, and it panics ("IO-APIC + timer doesn't work").
const PARAMETERS: &str = "console=ttyS0 loglevel=6 panic=-1 oops=panic mitigations=off no_timer_check random.trust_cpu=on rdinit=/init";

/// How QEMU executes a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    /// By the processor.
    Kvm,
    /// By translation: some ten times slower. Durations are comparable only where the disk's speed determines them.
    Tcg,
}

impl Acceleration {
    /// The best one that works here.
    pub fn probe() -> Self {
        let opens = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
        // KVM_PVM offers /dev/kvm, but does not boot a stock kernel.
        if opens && !Path::new("/sys/module/kvm_pvm").exists() { Self::Kvm } else { Self::Tcg }
    }

    /// Its name, as QEMU knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// A guest's machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// How instructions are executed.
    pub acceleration: Acceleration,
    /// Memory in MiB. With little of it the kernel writes dirty data before anybody asks it to.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u64,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Speed of the disk in bytes per second, for reading and writing together; `None`: as fast as it is.
    pub disk_bps: Option<u64>,
}

/// QEMU's program.
///
/// # Errors
/// It is not installed; the error names its package.
pub(super) fn qemu() -> Result<PathBuf> {
    ensure!(cfg!(target_arch = "x86_64"), "guests are supported on x86-64 only");
    children::find(PROGRAM, PACKAGE)
}

/// QEMU's version.
///
/// # Errors
/// It is not installed, or does not run.
pub async fn version() -> Result<String> {
    let mut command = tokio::process::Command::new(PROGRAM);
    command.arg("--version");
    let output = children::output(command, PACKAGE, std::time::Duration::from_secs(30)).await?;
    let text = String::from_utf8_lossy(&output);
    let line = text.lines().next().unwrap_or_default();
    Ok(line.strip_prefix("QEMU emulator version ").unwrap_or(line).to_owned())
}

/// The command that boots a kernel. It runs in `dir`, which has `initrd` and `disk`, and gets the kernel's log as `log`.
/// Its standard input and output are the virtio port.
pub(super) fn command(machine: &Machine, kernel: &Path, dir: &Path) -> Result<Command> {
    let kvm = machine.acceleration == Acceleration::Kvm;
    let mut command = Command::new(qemu()?);
    command.current_dir(dir);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // The kernel in the guest is an input: QEMU is to start no programs and to get no other rights.
    command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    command.args(["-accel", if kvm { "kvm" } else { "tcg,thread=multi" }]);
    // Five levels of page tables make translation slower.
    command.args(["-cpu", if kvm { "host" } else { "max,la57=off" }]);
    command.arg("-smp").arg(machine.cpus.to_string()).arg("-m").arg(format!("{}M", machine.memory_mib));
    let kernel = std::path::absolute(kernel).context("find the kernel")?;
    command.arg("-kernel").arg(kernel).args(["-initrd", "initrd", "-append", PARAMETERS]);
    command.args(["-serial", "file:log", "-device", "virtio-serial-pci"]);
    command.args(["-chardev", "stdio,id=port,signal=off"]);
    command.args(["-device", "virtserialport,chardev=port,name=wardian"]);
    command.arg("-drive").arg(drive(machine.disk_bps)).args(["-device", "virtio-blk-pci,drive=disk"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    wardian_sys::tether::tie(&mut command);
    Ok(command)
}

/// A flush in the guest does not wait for the host's disk, whose speed would be measured otherwise.
fn drive(bps: Option<u64>) -> String {
    let speed = bps.map(|bps| format!(",throttling.bps-total={bps}")).unwrap_or_default();
    format!("file=disk,format=raw,if=none,id=disk,cache=unsafe,discard=ignore{speed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_held_down() {
        assert!(drive(Some(50_000_000)).ends_with(",throttling.bps-total=50000000"));
        assert!(!drive(None).contains("throttling"));
    }
}
